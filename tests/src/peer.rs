//! An agent whose every message the test chooses, over real QUIC.

use std::net::SocketAddr;

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tributary_protocol::{
    enrollment::EnrollmentToken,
    error_code::Refusal,
    id::{Digest, JobId, RoundNumber},
    message::{
        AgentMessage, Assignment, BlobRef, CoordinatorMessage, EnrollmentRequest,
        EnrollmentResponse, LedgerHead, TransferRequest, TransferResponse, UploadOffer,
    },
    tensor_stream::{CHUNK_BYTES, ChunkHeader},
    transport::{
        TransportError, endpoint, stream,
        tls::{self, Identity},
    },
};

/// What a peer shows and trusts.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Its certificate and key.
    pub identity: Identity,
    /// The authority that it trusts.
    pub authority: CertificateDer<'static>,
}

/// Exchanges a token for credentials, or gives the refusal.
///
/// # Errors
/// The coordinator's refusal.
///
/// # Panics
/// If the connection fails.
pub async fn enroll(address: SocketAddr, token: &EnrollmentToken) -> Result<Credentials, Refusal> {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec![token.tenant.to_string()]).expect("parameters");
    let request = EnrollmentRequest {
        tenant: token.tenant.clone(),
        secret: token.secret,
        signing_request: params.serialize_request(&key).expect("a request").der().to_vec(),
    };
    let endpoint = endpoint::client(address, tls::enrollment(token.authority).expect("TLS"))
        .expect("a socket");
    let connection =
        endpoint.connect(address, "localhost").expect("connects").await.expect("a connection");
    let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
    stream::write_message(&mut send, &request).await.expect("sends");
    match stream::expect_message(&mut receive).await.expect("an answer") {
        EnrollmentResponse::Refused(refusal) => Err(refusal),
        EnrollmentResponse::Issued { certificates } => {
            let chain: Vec<CertificateDer<'static>> =
                certificates.into_iter().map(Into::into).collect();
            let key = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS#8");
            let authority = chain.last().expect("the authority").clone();
            Ok(Credentials { identity: Identity { chain: chain[..1].to_vec(), key }, authority })
        }
    }
}

/// A connected peer.
#[derive(Debug)]
pub struct Peer {
    /// The connection, for tests that open streams of their own.
    pub connection: Connection,
    _endpoint: Endpoint,
    control: SendStream,
    messages: RecvStream,
}

impl Peer {
    /// Connects and says hello.
    ///
    /// # Errors
    /// [`TransportError`] if the handshake or the stream fails.
    pub async fn connect(
        address: SocketAddr,
        credentials: &Credentials,
    ) -> Result<Self, TransportError> {
        let tls = tls::agent(credentials.identity.clone(), &credentials.authority)?;
        let endpoint = endpoint::client(address, tls)?;
        let connecting = endpoint.connect(address, "localhost").map_err(TransportError::Connect)?;
        let connection = connecting.await.map_err(TransportError::Connection)?;
        let (mut control, messages) =
            connection.open_bi().await.map_err(TransportError::Connection)?;
        let hello = AgentMessage::Hello {
            agent_version: "test".to_owned(),
            ledger_head: LedgerHead::EMPTY,
        };
        stream::write_message(&mut control, &hello).await?;
        Ok(Self { connection, _endpoint: endpoint, control, messages })
    }

    /// The next control message.
    ///
    /// # Errors
    /// [`TransportError`] if the connection ends.
    pub async fn next(&mut self) -> Result<CoordinatorMessage, TransportError> {
        stream::expect_message(&mut self.messages).await
    }

    /// Skips control messages up to the next assignment.
    ///
    /// # Panics
    /// If the connection ends.
    pub async fn assignment(&mut self) -> Assignment {
        loop {
            if let CoordinatorMessage::Configure(assignment) = self.next().await.expect("a message")
            {
                return *assignment;
            }
        }
    }

    /// Sends a control message.
    ///
    /// # Panics
    /// If the connection ends.
    pub async fn say(&mut self, message: &AgentMessage) {
        stream::write_message(&mut self.control, message).await.expect("sends");
    }

    /// Accepts an assignment.
    pub async fn accept(&mut self, job: &JobId, round: RoundNumber) {
        self.say(&AgentMessage::Accept { job: job.clone(), round }).await;
    }

    /// Opens a file stream with its first message and reads the answer.
    ///
    /// # Panics
    /// If the connection ends.
    pub async fn transfer(
        &self,
        request: &TransferRequest,
    ) -> (SendStream, RecvStream, TransferResponse) {
        let (mut send, mut receive) = self.connection.open_bi().await.expect("a stream");
        stream::write_message(&mut send, request).await.expect("sends");
        let answer = stream::expect_message(&mut receive).await.expect("an answer");
        (send, receive, answer)
    }

    /// Uploads an update whole.
    ///
    /// # Panics
    /// If the connection ends.
    pub async fn upload(&self, offer: &UploadOffer, update: &[u8]) -> TransferResponse {
        let (mut send, mut receive, answer) =
            self.transfer(&TransferRequest::Upload(offer.clone())).await;
        let TransferResponse::SendFrom { offset } = answer else { return answer };
        for (header, payload) in chunks(update, offset) {
            send.write_all(&header.encode()).await.expect("sends");
            send.write_all(payload).await.expect("sends");
        }
        send.finish().expect("open");
        stream::expect_message(&mut receive).await.expect("an answer")
    }
}

/// The chunks of a file from `offset` on.
pub fn chunks(file: &[u8], offset: u64) -> impl Iterator<Item = (ChunkHeader, &[u8])> {
    file[offset as usize..].chunks(CHUNK_BYTES).enumerate().map(move |(index, payload)| {
        (ChunkHeader::new(offset + (index * CHUNK_BYTES) as u64, payload), payload)
    })
}

/// The offer of an update.
#[must_use]
pub fn offer(job: &JobId, round: RoundNumber, update: &[u8], sequence: u64) -> UploadOffer {
    UploadOffer {
        job: job.clone(),
        round,
        update: BlobRef { digest: Digest::of(update), length: update.len() as u64 },
        ledger_head: LedgerHead { sequence, hash: Digest::of(update) },
        evaluation: Vec::new(),
    }
}
