//! When to stop.

use std::io::Read;

use super::AgentError;

/// Resolves when the process is asked to end: Ctrl-C, SIGTERM, or, if wanted, the end of standard
/// input, which whoever started the agent may hold open for as long as it should run.
///
/// # Errors
/// [`AgentError::Signal`] if the signals cannot be heard.
pub fn stop_requested(
    with_stdin: bool,
) -> Result<impl Future<Output = ()> + Send + use<>, AgentError> {
    #[cfg(unix)]
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .map_err(AgentError::Signal)?;
    #[cfg(unix)]
    let terminated = async move { terminate.recv().await };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<Option<()>>();
    let stdin_ended = async move {
        if !with_stdin {
            return std::future::pending().await;
        }
        let (ended, waits) = tokio::sync::oneshot::channel();
        // A thread of its own: reading standard input cannot be given up.
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
        tracing::info!("stopping");
    })
}
