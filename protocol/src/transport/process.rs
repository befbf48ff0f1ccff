//! What a long-running process asks of its host: the time, and when to stop.

use std::{
    io::Read,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::time::Timestamp;

/// The current time; drivers alone ask for it.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the clock of the drivers")]
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

/// Resolves when the process is asked to end: Ctrl-C, SIGTERM, or, if wanted, the end of standard
/// input, which whoever started the process may hold open for as long as it should run.
///
/// # Errors
/// The system's, if signals cannot be heard.
pub fn stop_requested(
    with_stdin: bool,
) -> std::io::Result<impl Future<Output = ()> + Send + use<>> {
    #[cfg(unix)]
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    #[cfg(unix)]
    let terminated = async move { terminate.recv().await };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<Option<()>>();
    let stdin_ended = async move {
        if !with_stdin {
            return std::future::pending().await;
        }
        let (ended, waits) = tokio::sync::oneshot::channel();
        // A thread of its own: reading standard input cannot be given up, and on the runtime's
        // pool it would keep the process from ending.
        std::thread::spawn(move || {
            let mut ignored = [0; 1024];
            while matches!(std::io::stdin().read(&mut ignored), Ok(read) if read > 0) {}
            // Nobody listens once another reason to stop came first.
            let _ = ended.send(());
        });
        // An error means that the thread is gone, and its standard input with it.
        let _ = waits.await;
    };
    Ok(async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminated => {}
            () = stdin_ended => {}
        }
    })
}
