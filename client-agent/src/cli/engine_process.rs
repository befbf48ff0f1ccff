//! The process of one tenant at the highest level of computation. The agent starts it and speaks to
//! it in lines of JSON; see [`crate::engine::generation::Program`].

use std::{collections::HashMap, process::ExitCode, sync::Arc};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    sync::mpsc::{UnboundedSender, unbounded_channel},
    task::AbortHandle,
};

use super::CliError;
use crate::{
    compute::set_threads,
    engine::{
        generation::{
            Event, FromProcess, GenerationRequest, RequestId, Submission, SubmitError, ToProcess,
        },
        language::{LanguageProcess, ProcessOptions},
    },
};

/// Answers until standard input ends.
pub(super) async fn execute() -> Result<ExitCode, CliError> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let read = |source| CliError::Engine { what: "cannot be read", source };
    let Some(greeting) = lines.next_line().await.map_err(read)? else {
        return Ok(ExitCode::SUCCESS);
    };
    let options: ProcessOptions = serde_json::from_str(&greeting)
        .map_err(|error| CliError::Engine { what: "is not understood", source: error.into() })?;
    set_threads(options.threads)?;
    let process = Arc::new(LanguageProcess::start(&options)?);
    let (answers, mut unsent) = unbounded_channel::<FromProcess>();
    let writer = tokio::spawn(async move {
        let mut output = tokio::io::stdout();
        while let Some(answer) = unsent.recv().await {
            let mut line = serde_json::to_string(&answer).expect("answers have only text keys");
            line.push('\n');
            output.write_all(line.as_bytes()).await?;
            output.flush().await?;
        }
        std::io::Result::Ok(())
    });
    say(&answers, FromProcess::Ready(process.ready));
    let mut tasks: HashMap<RequestId, AbortHandle> = HashMap::new();
    while let Some(line) = lines.next_line().await.map_err(read)? {
        let line = serde_json::from_str(&line).map_err(|error| CliError::Engine {
            what: "is not understood",
            source: error.into(),
        })?;
        match line {
            ToProcess::Submit(submission) => {
                tasks.retain(|_, task| !task.is_finished());
                let id = submission.id;
                let work = answer(process.clone(), *submission, answers.clone());
                tasks.insert(id, tokio::spawn(work).abort_handle());
            }
            // Dropping the ticket with its task cancels the request.
            ToProcess::Cancel(id) => {
                if let Some(task) = tasks.remove(&id) {
                    task.abort();
                }
            }
            ToProcess::Learn(folder) => {
                let (process, answers) = (process.clone(), answers.clone());
                tokio::task::spawn_blocking(move || {
                    let digest = process.read_adapter(&folder);
                    let digest = digest.inspect_err(|error| {
                        let error: &dyn std::error::Error = error;
                        tracing::warn!(folder = %folder.display(), error, "no adapter");
                    });
                    say(&answers, FromProcess::Learned(folder, digest.ok()));
                });
            }
            ToProcess::Drain => {
                let (drained, answers) = (process.generator.drain(), answers.clone());
                tokio::spawn(async move {
                    drained.await;
                    say(&answers, FromProcess::Drained);
                });
            }
        }
    }
    // The agent is gone, and nobody reads what is not written yet.
    writer.abort();
    Ok(ExitCode::SUCCESS)
}

async fn answer(
    process: Arc<LanguageProcess>,
    submission: Submission,
    answers: UnboundedSender<FromProcess>,
) {
    let Submission { id, tenant, adapter, prompt, work, deadline } = submission;
    let adapter = match adapter {
        None => None,
        Some(digest) => match process.adapter(digest) {
            Some(adapter) => Some(adapter),
            None => return say(&answers, FromProcess::Event(id, Event::failed())),
        },
    };
    let request = GenerationRequest { id, tenant, adapter, prompt, work, deadline };
    let mut ticket = match process.generator.submit(request).await {
        Ok(ticket) => ticket,
        Err(SubmitError::Refused(refusal)) => {
            return say(&answers, FromProcess::Taken(id, Err(refusal)));
        }
        Err(SubmitError::Stopped) => {
            return say(&answers, FromProcess::Event(id, Event::failed()));
        }
    };
    say(&answers, FromProcess::Taken(id, Ok(())));
    loop {
        let event = ticket.event().await;
        let finished = matches!(event, Event::Finished(_));
        say(&answers, FromProcess::Event(id, event));
        if finished {
            return;
        }
    }
}

fn say(answers: &UnboundedSender<FromProcess>, answer: FromProcess) {
    // Fails only once the agent reads no more.
    let _ = answers.send(answer);
}
