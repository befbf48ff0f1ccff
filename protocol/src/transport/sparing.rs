//! A socket on which connections hand little to the kernel at once.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

/// The most that the kernel takes at once, in bytes: what one UDP packet without headers can hold.
const KERNEL_BYTES_MAX: usize = 65_000;

/// A UDP socket that bounds what a connection sends with one call.
///
/// Every connection keeps a buffer as large as the most it ever sent at once, so this bounds its
/// memory too. A socket does not know whose packets it sends; it goes by the largest ones.
#[derive(Debug)]
pub(super) struct Sparing {
    inner: Arc<dyn AsyncUdpSocket>,
    bytes_max: usize,
    /// The largest packet so far in bytes, probes of the path among them: no connection sends several of
    /// a size that was not probed before.
    largest: AtomicUsize,
    /// The largest of which several were sent at once.
    batched: AtomicUsize,
}

impl Sparing {
    /// - `bytes_max`: sent at once by a connection, but for the first ones over a path of a new kind; one
    ///   packet always
    pub(super) fn new(inner: Arc<dyn AsyncUdpSocket>, bytes_max: usize) -> Self {
        let (largest, batched) = (AtomicUsize::new(1), AtomicUsize::new(1));
        Self { inner, bytes_max, largest, batched }
    }
}

impl AsyncUdpSocket for Sparing {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match transmit.segment_size {
            Some(size) => self.batched.fetch_max(size, Ordering::Relaxed),
            None => self.largest.fetch_max(transmit.contents.len(), Ordering::Relaxed),
        };
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(context, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        let taken = KERNEL_BYTES_MAX / self.largest.load(Ordering::Relaxed);
        let kept = self.bytes_max / self.batched.load(Ordering::Relaxed);
        taken.min(kept).clamp(1, self.inner.max_transmit_segments())
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }
}
