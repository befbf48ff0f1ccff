//! How fast a connection may ask for something: what comes faster stays unread, so that QUIC's flow
//! control holds it back at the peer.

use std::time::Duration;

use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

/// Requests that may come at once.
const BURST: u32 = 200;

/// The time that each further one takes: 50 a second.
const INTERVAL: Duration = Duration::from_millis(20);

/// The requests of one connection: control messages and transfers together.
#[derive(Debug)]
pub(super) struct Throttle {
    /// When all that was asked for is paid for.
    paid: Mutex<Instant>,
}

impl Throttle {
    pub(super) fn new() -> Self {
        Self { paid: Mutex::new(Instant::now()) }
    }

    /// Waits until a request may be read.
    ///
    /// - `cost`: of how many requests the last one was worth
    pub(super) async fn request(&self, cost: u32) {
        let mut paid = self.paid.lock().await;
        let (until, wait) = pay(*paid, cost, Instant::now());
        *paid = until;
        // Under the lock: the other stream of the connection waits as well.
        sleep(wait).await;
    }
}

/// When all is paid for after one request more, and how long to wait before it is read.
///
/// - `paid`: when all before it is paid for
fn pay(paid: Instant, cost: u32, now: Instant) -> (Instant, Duration) {
    let until = paid.max(now) + INTERVAL * cost;
    (until, (until - now).saturating_sub(INTERVAL * BURST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let start = Instant::now();
        let (mut paid, mut now) = (start, start);
        let mut request = |cost| {
            let (until, wait) = pay(paid, cost, now);
            (paid, now) = (until, now + wait);
            now - start
        };
        for _ in 0..BURST {
            assert_eq!(request(1), Duration::ZERO);
        }
        for number in 1..=50 {
            assert_eq!(request(1), INTERVAL * number);
        }
        assert_eq!(request(100), Duration::from_secs(3));
    }
}
