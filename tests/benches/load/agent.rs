//! An agent that does everything of a round but to train.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use quinn::Endpoint;
use tributary_protocol::{
    id::Digest,
    message::{
        BlobRef, CoordinatorMessage, LedgerHead, TransferRequest, TransferResponse, UploadOffer,
    },
    tensor_stream::{CHUNK_BYTES, FileDigest, HashedChunk},
    transport::stream,
};
use tributary_tests::peer::{Credentials, Peer};

/// A connected agent.
#[derive(Debug)]
pub(crate) struct NullAgent {
    number: u64,
    peer: Peer,
}

impl NullAgent {
    /// Connects over a socket that all agents share, and waits to be welcomed.
    pub(crate) async fn connect(
        number: u64,
        endpoint: &Endpoint,
        address: SocketAddr,
        credentials: &Credentials,
    ) -> Self {
        let peer = Peer::connect_on(endpoint, address, credentials).await;
        let mut peer = peer.expect("connects");
        let welcome = peer.next().await.expect("a message");
        assert!(matches!(welcome, CoordinatorMessage::Welcome(_)), "{welcome:?}");
        Self { number, peer }
    }

    /// Plays one round: download, acceptance, upload, to the word that it is over.
    ///
    /// - `update`: of every agent, but for the first bytes, which are its number
    pub(crate) async fn play(mut self, update: Arc<Bytes>) -> BlobRef {
        let assignment = self.peer.assignment().await;
        let base = assignment.base.file;
        // Checked, and dropped piece by piece: a thousand models do not fit into one process.
        self.peer.download_onto(base, |_| ()).await.expect("the base");
        self.peer.accept(&assignment.job.name, assignment.round).await;
        let (chunks, digest) = self.chunks(&update);
        let offer = UploadOffer {
            job: assignment.job.name.clone(),
            round: assignment.round,
            update: BlobRef { digest, length: update.len() as u64 },
            ledger_head: LedgerHead { sequence: 1, hash: Digest::of(&self.number.to_le_bytes()) },
            evaluation: Vec::new(),
        };
        self.upload(&offer, chunks).await;
        loop {
            let message = self.peer.next().await.expect("a message");
            if let CoordinatorMessage::RoundClosed { abandoned, .. } = message {
                assert_eq!(abandoned, None);
                return base;
            }
        }
    }

    async fn upload(&self, offer: &UploadOffer, chunks: Vec<Bytes>) {
        let request = TransferRequest::Upload(offer.clone());
        let (mut send, mut receive, answer) = self.peer.transfer(&request).await;
        assert_eq!(answer, TransferResponse::SendFrom { offset: 0 });
        for piece in chunks {
            send.write_chunk(piece).await.expect("sends");
        }
        send.finish().expect("finishes once");
        let answer: TransferResponse =
            stream::expect_message(&mut receive).await.expect("an answer");
        assert_eq!(answer, TransferResponse::Stored);
    }

    /// What is sent of the agent's own update, headers and payloads, and its digest.
    fn chunks(&self, update: &Bytes) -> (Vec<Bytes>, Digest) {
        let (mut pieces, mut digest) = (Vec::new(), FileDigest::default());
        for start in (0..update.len()).step_by(CHUNK_BYTES) {
            let mut payload = update.slice(start..(start + CHUNK_BYTES).min(update.len()));
            if start == 0 {
                let mut own = payload.to_vec();
                own[..8].copy_from_slice(&self.number.to_le_bytes());
                payload = own.into();
            }
            let chunk = HashedChunk::of(start as u64, &payload);
            digest.take(&chunk);
            pieces.extend([Bytes::copy_from_slice(&chunk.header().encode()), payload]);
        }
        (pieces, digest.finish())
    }
}
