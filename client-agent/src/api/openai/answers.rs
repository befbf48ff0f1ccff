//! The events of the requests that one call led to.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use axum::response::{
    IntoResponse, Response, Sse,
    sse::{Event as SseEvent, KeepAlive},
};
use futures_core::Stream;
use serde_json::{Value, json};

use super::error::OpenAiError;
use crate::engine::generation::{Event, FinishReason, Finished, Ticket};

/// Several requests, in the order of the answers. Dropping it cancels those under way.
pub(super) struct Answers {
    tickets: Vec<Option<Ticket>>,
}

/// A finished answer.
pub(super) struct Whole {
    pub(super) text: String,
    pub(super) embedding: Vec<f32>,
    pub(super) finished: Finished,
}

/// How one kind of answer is written into a stream.
pub(super) trait Chunks: Send + Unpin + 'static {
    /// What comes before any text.
    fn opening(&self, index: usize) -> Option<Value>;
    /// Text of an answer.
    fn text(&self, index: usize, text: &str) -> Value;
    /// The end of an answer.
    fn end(&self, index: usize, reason: &'static str) -> Value;
    /// The counts of all answers, if they are wanted.
    fn usage(&self, usage: Value) -> Option<Value>;
}

impl Answers {
    pub(super) fn new(tickets: Vec<Ticket>) -> Self {
        Self { tickets: tickets.into_iter().map(Some).collect() }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<(usize, Event)>> {
        let mut open = false;
        for (index, slot) in self.tickets.iter_mut().enumerate() {
            let Some(ticket) = slot else { continue };
            open = true;
            if let Poll::Ready(event) = ticket.poll_event(context) {
                if matches!(event, Event::Finished(_)) {
                    *slot = None;
                }
                return Poll::Ready(Some((index, event)));
            }
        }
        if open { Poll::Pending } else { Poll::Ready(None) }
    }

    /// Waits for all answers.
    pub(super) async fn whole(mut self) -> Result<Vec<Whole>, OpenAiError> {
        let count = self.tickets.len();
        let mut texts = vec![(String::new(), Vec::new()); count];
        let mut ends: Vec<Option<Finished>> = vec![None; count];
        while let Some((index, event)) = poll_fn(|context| self.poll(context)).await {
            match event {
                Event::Text(piece) => texts[index].0 += &piece,
                Event::Embedding(values) => texts[index].1 = values,
                Event::Finished(finished) => {
                    if let Some(error) = OpenAiError::of_reason(finished.reason) {
                        return Err(error);
                    }
                    ends[index] = Some(finished);
                }
            }
        }
        let whole = |((text, embedding), end): ((String, Vec<f32>), Option<Finished>)| {
            end.map(|finished| Whole { text, embedding, finished })
        };
        Ok(texts.into_iter().zip(ends).filter_map(whole).collect())
    }

    /// Sends the answers as they come, as server-sent events that end with `[DONE]`.
    pub(super) fn stream(self, chunks: impl Chunks) -> Response {
        let openings = (0..self.tickets.len()).filter_map(|index| chunks.opening(index));
        let openings = openings.map(|document| document.to_string()).collect();
        let stream = EventStream {
            answers: self,
            chunks,
            ready: openings,
            counts: Counts::default(),
            done: false,
        };
        Sse::new(stream).keep_alive(KeepAlive::default()).into_response()
    }
}

/// Tokens of several answers.
#[derive(Default, Clone, Copy)]
pub(super) struct Counts {
    prompt: usize,
    cached: usize,
    answer: usize,
}

impl Counts {
    pub(super) fn add(&mut self, finished: &Finished) {
        self.prompt += finished.prompt_tokens;
        self.cached += finished.cached_tokens;
        self.answer += finished.answer.len();
    }

    pub(super) fn document(self) -> Value {
        json!({
            "prompt_tokens": self.prompt, "completion_tokens": self.answer,
            "total_tokens": self.prompt + self.answer,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }
}

struct EventStream<C> {
    answers: Answers,
    chunks: C,
    /// Lines that can be sent at once.
    ready: VecDeque<String>,
    counts: Counts,
    done: bool,
}

impl<C: Chunks> Stream for EventStream<C> {
    type Item = Result<SseEvent, std::convert::Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(line) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(SseEvent::default().data(line))));
            }
            if this.done {
                return Poll::Ready(None);
            }
            let Poll::Ready(next) = this.answers.poll(context) else { return Poll::Pending };
            match next {
                Some((index, Event::Text(text))) => {
                    this.ready.push_back(this.chunks.text(index, &text).to_string());
                }
                Some((_, Event::Embedding(_))) => {}
                Some((index, Event::Finished(finished))) => {
                    this.counts.add(&finished);
                    let document = match OpenAiError::of_reason(finished.reason) {
                        Some(error) => error.document(),
                        None => this.chunks.end(index, reason_name(finished.reason)),
                    };
                    this.ready.push_back(document.to_string());
                }
                None => {
                    this.done = true;
                    let usage = this.chunks.usage(this.counts.document());
                    this.ready.extend(usage.map(|document| document.to_string()));
                    this.ready.push_back("[DONE]".to_owned());
                }
            }
        }
    }
}

/// OpenAI's word for the end of an answer.
pub(super) const fn reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        _ => "stop",
    }
}
