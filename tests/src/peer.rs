//! An agent whose every message the test chooses, over real QUIC.

use std::{io, net::SocketAddr};

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tributary_protocol::{
    enrollment::EnrollmentToken,
    error_code::Refusal,
    id::{Digest, JobId, RoundNumber},
    isolation::Isolation,
    message::{
        AgentMessage, Assignment, BlobRef, CoordinatorMessage, EnrollmentRequest,
        EnrollmentResponse, LedgerHead, TransferRequest, TransferResponse, UploadOffer,
    },
    tensor_stream::{CHUNK_BYTES, ChunkHeader, Cursor},
    transport::{
        TransportError, endpoint,
        stream::{self, ChunkSink},
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
    let answer = stream::expect_message(&mut receive).await.expect("an answer");
    // Said aloud: until then the coordinator keeps a place for this address.
    connection.close(quinn::VarInt::from_u32(0), b"");
    endpoint.wait_idle().await;
    match answer {
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

/// Connects, and says nothing.
///
/// # Errors
/// [`TransportError`] if the handshake fails.
pub async fn dial(
    endpoint: &Endpoint,
    address: SocketAddr,
    credentials: &Credentials,
) -> Result<Connection, TransportError> {
    let tls = tls::agent(credentials.identity.clone(), &credentials.authority)?;
    let config = endpoint::client_config(tls)?;
    let connecting =
        endpoint.connect_with(config, address, "localhost").map_err(TransportError::Connect)?;
    connecting.await.map_err(TransportError::Connection)
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
        Self::connect_at(address, credentials, Isolation::default()).await
    }

    /// As [`Self::connect`], of an agent that keeps its tenant apart so far.
    ///
    /// # Errors
    /// [`TransportError`] if the connection is not made.
    pub async fn connect_at(
        address: SocketAddr,
        credentials: &Credentials,
        isolation: Isolation,
    ) -> Result<Self, TransportError> {
        let tls = tls::agent(credentials.identity.clone(), &credentials.authority)?;
        Self::greet(&endpoint::client(address, tls)?, address, credentials, isolation).await
    }

    /// Connects over a socket that it shares with others, and says hello.
    ///
    /// # Errors
    /// [`TransportError`] if the handshake or the stream fails.
    pub async fn connect_on(
        endpoint: &Endpoint,
        address: SocketAddr,
        credentials: &Credentials,
    ) -> Result<Self, TransportError> {
        Self::greet(endpoint, address, credentials, Isolation::default()).await
    }

    async fn greet(
        endpoint: &Endpoint,
        address: SocketAddr,
        credentials: &Credentials,
        isolation: Isolation,
    ) -> Result<Self, TransportError> {
        let connection = dial(endpoint, address, credentials).await?;
        let (mut control, messages) =
            connection.open_bi().await.map_err(TransportError::Connection)?;
        let hello = AgentMessage::Hello {
            agent_version: "test".to_owned(),
            ledger_head: LedgerHead::EMPTY,
            isolation,
        };
        stream::write_message(&mut control, &hello).await?;
        Ok(Self { connection, _endpoint: endpoint.clone(), control, messages })
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
        self.try_say(message).await.expect("sends");
    }

    /// Sends a control message.
    ///
    /// # Errors
    /// [`TransportError`] if the connection ends.
    pub async fn try_say(&mut self, message: &AgentMessage) -> Result<(), TransportError> {
        stream::write_message(&mut self.control, message).await
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
        self.try_transfer(request).await.expect("an answer")
    }

    /// Opens a file stream with its first message and reads the answer.
    ///
    /// # Errors
    /// [`TransportError`] if the connection ends.
    pub async fn try_transfer(
        &self,
        request: &TransferRequest,
    ) -> Result<(SendStream, RecvStream, TransferResponse), TransportError> {
        let opened = self.connection.open_bi().await;
        let (mut send, mut receive) = opened.map_err(TransportError::Connection)?;
        stream::write_message(&mut send, request).await?;
        let answer = stream::expect_message(&mut receive).await?;
        Ok((send, receive, answer))
    }

    /// Uploads an update whole.
    ///
    /// # Panics
    /// If the connection ends.
    pub async fn upload(&self, offer: &UploadOffer, update: &[u8]) -> TransferResponse {
        self.try_upload(offer, update).await.expect("an answer")
    }

    /// Uploads an update whole.
    ///
    /// # Errors
    /// [`TransportError`] if the connection ends.
    pub async fn try_upload(
        &self,
        offer: &UploadOffer,
        update: &[u8],
    ) -> Result<TransferResponse, TransportError> {
        let request = TransferRequest::Upload(offer.clone());
        let (mut send, mut receive, answer) = self.try_transfer(&request).await?;
        let TransferResponse::SendFrom { offset } = answer else { return Ok(answer) };
        for (header, payload) in chunks(update, offset) {
            send.write_all(&header.encode()).await.map_err(TransportError::Write)?;
            send.write_all(payload).await.map_err(TransportError::Write)?;
        }
        send.finish().map_err(|_| TransportError::Closed)?;
        stream::expect_message(&mut receive).await
    }

    /// Downloads a file whole.
    ///
    /// # Errors
    /// [`TransportError`] if the connection ends.
    ///
    /// # Panics
    /// If the coordinator refuses, or sends something else.
    pub async fn try_download(&self, file: BlobRef) -> Result<Vec<u8>, TransportError> {
        let mut bytes = Vec::new();
        self.download_onto(file, |piece| bytes.extend_from_slice(piece)).await?;
        Ok(bytes)
    }

    /// Downloads and checks a file, and hands it to `take` piece by piece.
    ///
    /// # Errors
    /// [`TransportError`] if the connection ends.
    ///
    /// # Panics
    /// If the coordinator refuses, or sends something else.
    pub async fn download_onto(
        &self,
        file: BlobRef,
        take: impl FnMut(&[u8]) + Send,
    ) -> Result<(), TransportError> {
        let request = TransferRequest::Download { digest: file.digest, offset: 0 };
        let (_send, mut receive, answer) = self.try_transfer(&request).await?;
        assert_eq!(answer, TransferResponse::Sending { length: file.length });
        let mut cursor = Cursor::new(file.length, 0).map_err(TransportError::Chunk)?;
        let mut pieces = Pieces(take);
        let found = stream::receive_chunks(&mut receive, &mut pieces, &mut cursor, || 0).await?;
        assert_eq!(found, Some(file.digest));
        Ok(())
    }
}

/// What a download goes to.
struct Pieces<F>(F);

impl<F: FnMut(&[u8]) + Send> ChunkSink for Pieces<F> {
    async fn take(&mut self, piece: Vec<u8>) -> io::Result<Vec<u8>> {
        (self.0)(&piece);
        Ok(piece)
    }

    async fn end_chunk(&mut self) -> io::Result<()> {
        Ok(())
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
