//! A coordinator that a test plays by hand, over real QUIC on loopback.

use std::net::SocketAddr;

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tributary_protocol::{
    enrollment::EnrollmentToken,
    id::{Digest, TenantId},
    message::{
        AgentMessage, CoordinatorMessage, EnrollmentRequest, EnrollmentResponse, LedgerHead,
        TransferRequest, TransferResponse,
    },
    receipt::Receipt,
    tensor_stream::{CHUNK_BYTES, ChunkHeader, Cursor, HEADER_BYTES},
    time::Timestamp,
    transport::{
        endpoint,
        stream::{expect_message, read_message, write_message},
        tls,
    },
};

/// The listening side, with its authority.
pub(crate) struct Coordinator {
    endpoint: Endpoint,
    identity: tls::Identity,
    authority: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Coordinator {
    pub(crate) fn start() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, "authority");
        let authority = parameters.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::new(parameters, key);
        let key = KeyPair::generate().unwrap();
        let mut server = CertificateParams::new(["localhost".to_owned()]).unwrap();
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = server.signed_by(&key, &issuer).unwrap().der().clone();
        let chain = vec![leaf, authority.clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let identity = tls::Identity { chain, key };
        let tls = tls::server(identity.clone(), &authority).unwrap();
        let endpoint = endpoint::listen(
            SocketAddr::from(([127, 0, 0, 1], 0)),
            tls,
            &endpoint::Listening::default(),
        )
        .unwrap();
        Self { endpoint, identity, authority, issuer }
    }

    /// Acknowledges a ledger head.
    pub(crate) fn receipt(&self, head: LedgerHead) -> CoordinatorMessage {
        CoordinatorMessage::Receipt(self.sign(head))
    }

    fn sign(&self, head: LedgerHead) -> Box<Receipt> {
        let tenant = TenantId::new("ash").unwrap();
        let now = Timestamp(1_700_000_000_000);
        Box::new(Receipt::sign(&self.identity, tenant, head, now).unwrap())
    }

    pub(crate) fn address(&self) -> String {
        format!("localhost:{}", self.endpoint.local_addr().unwrap().port())
    }

    pub(crate) fn token(&self, tenant: &str) -> EnrollmentToken {
        let authority = Digest::of(&self.authority);
        EnrollmentToken { tenant: TenantId::new(tenant).unwrap(), secret: [7; 32], authority }
    }

    pub(crate) async fn accept(&self) -> Connection {
        self.endpoint.accept().await.unwrap().await.unwrap()
    }

    /// Takes connections that fail.
    pub(crate) async fn try_accept(&self) {
        while let Some(incoming) = self.endpoint.accept().await {
            let _ = incoming.await;
        }
    }

    /// Answers one enrolment with a certificate that `change` changed.
    pub(crate) async fn answer_enrollment(&self, change: fn(&mut CertificateParams)) {
        let connection = self.accept().await;
        let (mut send, mut receive) = connection.accept_bi().await.unwrap();
        let request: EnrollmentRequest = expect_message(&mut receive).await.unwrap();
        let certificates = self.certify(request.signing_request, change);
        write_message(&mut send, &EnrollmentResponse::Issued { certificates }).await.unwrap();
        send.finish().unwrap();
        connection.closed().await;
    }

    /// Signs what is asked for, as `change` changed it.
    pub(crate) fn certify(
        &self,
        signing_request: Vec<u8>,
        change: fn(&mut CertificateParams),
    ) -> Vec<Vec<u8>> {
        let der = signing_request.into();
        let mut signing = CertificateSigningRequestParams::from_der(&der).unwrap();
        change(&mut signing.params);
        let leaf = signing.signed_by(&self.issuer).unwrap();
        vec![leaf.der().to_vec(), self.authority.to_vec()]
    }

    /// Waits for an agent and welcomes it.
    pub(crate) async fn welcome(&self, acknowledged_head: LedgerHead) -> Session {
        let connection = self.accept().await;
        let (mut send, mut receive) = connection.accept_bi().await.unwrap();
        let hello: AgentMessage = expect_message(&mut receive).await.unwrap();
        let AgentMessage::Hello { ledger_head, .. } = hello else { panic!("{hello:?}") };
        let welcome = CoordinatorMessage::Welcome(self.sign(acknowledged_head));
        write_message(&mut send, &welcome).await.unwrap();
        Session { connection, send, receive, ledger_head }
    }
}

/// One welcomed agent.
pub(crate) struct Session {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
    pub(crate) ledger_head: LedgerHead,
}

impl Session {
    pub(crate) async fn tell(&mut self, message: CoordinatorMessage) {
        write_message(&mut self.send, &message).await.unwrap();
    }

    pub(crate) async fn hear(&mut self) -> AgentMessage {
        read_message(&mut self.receive).await.unwrap().expect("the agent stays")
    }

    pub(crate) async fn transfer(&self) -> Transfer {
        let (send, mut receive) = self.connection.accept_bi().await.unwrap();
        let request = expect_message(&mut receive).await.unwrap();
        Transfer { send, receive, request }
    }

    /// The certificate that the agent showed.
    pub(crate) fn shown(&self) -> Vec<u8> {
        let chain = self.connection.peer_identity().unwrap();
        let chain = chain.downcast::<Vec<CertificateDer<'static>>>().unwrap();
        chain[0].to_vec()
    }

    pub(crate) fn break_off(&self) {
        self.connection.close(5001_u32.into(), b"restarting");
    }
}

/// One file stream that the agent opened.
pub(crate) struct Transfer {
    send: SendStream,
    receive: RecvStream,
    pub(crate) request: TransferRequest,
}

impl Transfer {
    pub(crate) async fn answer(&mut self, response: TransferResponse) {
        write_message(&mut self.send, &response).await.unwrap();
    }

    /// Sends chunks of `file` from where the agent asked, `chunks` of them at most.
    pub(crate) async fn send_file(&mut self, file: &[u8], chunks: usize) -> u64 {
        let TransferRequest::Download { digest, offset } = self.request else {
            panic!("{:?}", self.request)
        };
        assert_eq!(digest, Digest::of(file));
        let length = file.len() as u64;
        self.answer(TransferResponse::Sending { length }).await;
        let mut cursor = Cursor::new(length, offset).unwrap();
        for _ in 0..chunks {
            if cursor.is_finished() {
                break;
            }
            let from = cursor.offset() as usize;
            let payload = &file[from..from + cursor.next_length()];
            let header = cursor.send(payload);
            self.send.write_all(&header.encode()).await.unwrap();
            self.send.write_all(payload).await.unwrap();
        }
        offset
    }

    /// Receives one chunk of an upload.
    pub(crate) async fn receive_chunk(&mut self, cursor: &mut Cursor) -> Vec<u8> {
        let mut header = [0; HEADER_BYTES];
        self.receive.read_exact(&mut header).await.unwrap();
        let header = ChunkHeader::decode(&header).unwrap();
        let mut payload = vec![0; (header.length as usize).min(CHUNK_BYTES)];
        self.receive.read_exact(&mut payload).await.unwrap();
        cursor.accept(&header, &payload).unwrap();
        payload
    }
}
