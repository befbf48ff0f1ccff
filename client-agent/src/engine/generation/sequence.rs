use std::sync::Arc;

use tributary_protocol::{id::Digest, time::Timestamp};

use super::{
    Event, FinishReason, Finished, GenerationRequest, Work,
    blocks::{BlockId, BlockPool, chain},
    sampling::Sampler,
};
use crate::text::{StopFilter, TextStream, Tokenizer};

/// A request on its way.
pub(super) struct Sequence {
    pub(super) request: GenerationRequest,
    /// Prompt and answer.
    pub(super) tokens: Vec<u32>,
    /// Tokens whose keys and values are in the cache.
    pub(super) computed: usize,
    /// Tokens that the tenant was charged for: not twice after an eviction.
    pub(super) charged: usize,
    pub(super) table: Vec<BlockId>,
    /// Digests of the full blocks so far, behind the chain's root.
    chain: Vec<Digest>,
    root: Digest,
    pub(super) arrived: Timestamp,
    pub(super) started: Option<Timestamp>,
    first_token: Option<Timestamp>,
    cached_tokens: usize,
    sampler: Option<Sampler>,
    text: TextStream,
    stops: StopFilter,
    /// Sum of the hidden states, for an embedding.
    pub(super) pooled: Vec<f32>,
}

impl Sequence {
    pub(super) fn new(
        request: GenerationRequest,
        root: Digest,
        tokenizer: Arc<Tokenizer>,
        now: Timestamp,
    ) -> Self {
        let (sampler, stops) = match &request.work {
            Work::Generate { sampling, stops, .. } => {
                (Some(Sampler::new(*sampling)), stops.clone())
            }
            Work::Embed => (None, Vec::new()),
        };
        Self {
            tokens: request.prompt.clone(),
            computed: 0,
            charged: 0,
            table: Vec::new(),
            chain: Vec::new(),
            root,
            arrived: now,
            started: None,
            first_token: None,
            cached_tokens: 0,
            sampler,
            text: TextStream::new(tokenizer),
            stops: StopFilter::new(stops),
            pooled: Vec::new(),
            request,
        }
    }

    pub(super) const fn embeds(&self) -> bool {
        matches!(self.request.work, Work::Embed)
    }

    /// Tokens of the answer, at most.
    pub(super) const fn tokens_max(&self) -> usize {
        match self.request.work {
            Work::Generate { tokens_max, .. } => tokens_max,
            Work::Embed => 0,
        }
    }

    pub(super) fn answer(&self) -> &[u32] {
        &self.tokens[self.request.prompt.len()..]
    }

    /// Takes the blocks of the longest known prefix, leaving at least one token to compute.
    pub(super) fn reuse_prefix(&mut self, pool: &mut BlockPool, block_tokens: usize) {
        // An embedding needs the hidden states of every token, which are not kept.
        if self.computed > 0 || !self.table.is_empty() || self.embeds() {
            return;
        }
        self.chain.clear();
        let mut before = self.root;
        let last = (self.tokens.len() - 1) / block_tokens;
        for block in self.tokens.chunks_exact(block_tokens).take(last) {
            let key = chain(before, block);
            let Some(id) = pool.reuse(&key) else { break };
            self.table.push(id);
            self.chain.push(key);
            before = key;
        }
        self.computed = self.table.len() * block_tokens;
        if self.started.is_none() {
            self.cached_tokens = self.computed;
        }
        self.charged = self.charged.max(self.computed);
    }

    /// Names the blocks that have become full.
    pub(super) fn name_blocks(&mut self, pool: &mut BlockPool, block_tokens: usize) {
        for index in self.chain.len()..self.computed / block_tokens {
            let before = self.chain.last().copied().unwrap_or(self.root);
            let tokens = &self.tokens[index * block_tokens..(index + 1) * block_tokens];
            let key = chain(before, tokens);
            pool.name(self.table[index], key);
            self.chain.push(key);
        }
    }

    /// Gives all blocks back; what was in them is computed again if it is needed.
    pub(super) fn evict(&mut self, pool: &mut BlockPool) {
        // The end of the chain first: without its beginning it cannot be found.
        for id in self.table.drain(..).rev() {
            pool.release(id);
        }
        self.computed = 0;
        self.chain.clear();
        self.pooled.clear();
    }

    /// Draws the next token; returns the text that may be shown and why it ends here, if it does.
    pub(super) fn draw(
        &mut self,
        logits: &mut [f32],
        now: Timestamp,
    ) -> (String, Option<FinishReason>) {
        let Some(sampler) = &mut self.sampler else { return (String::new(), None) };
        let token = sampler.next(logits, &self.tokens);
        self.tokens.push(token);
        self.first_token.get_or_insert(now);
        let Work::Generate { tokens_max, end_tokens, .. } = &self.request.work else {
            return (String::new(), None);
        };
        let ended = end_tokens.contains(&token);
        let full = self.tokens.len() - self.request.prompt.len() >= *tokens_max;
        let mut text = if ended { String::new() } else { self.text.push(token) };
        if ended || full {
            text += &self.text.finish();
        }
        let mut shown = self.stops.push(&text);
        if shown.stopped {
            return (shown.text, Some(FinishReason::Stop));
        }
        if ended || full {
            shown.text += &self.stops.finish();
            let reason = if ended { FinishReason::Stop } else { FinishReason::Length };
            return (shown.text, Some(reason));
        }
        (shown.text, None)
    }

    /// The last event.
    pub(super) fn finished(&self, reason: FinishReason, now: Timestamp) -> Event {
        let after = |moment: Option<Timestamp>| {
            moment.unwrap_or(now).since(self.arrived).as_millis() as u64
        };
        Event::Finished(Finished {
            reason,
            prompt_tokens: self.request.prompt.len(),
            cached_tokens: self.cached_tokens,
            answer: self.answer().to_vec(),
            queued_ms: after(self.started),
            first_token_ms: after(self.first_token),
            total_ms: after(Some(now)),
        })
    }
}
