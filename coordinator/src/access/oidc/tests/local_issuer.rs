//! An issuer on this machine: describes itself, publishes keys, trades codes, signs anything.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use data_encoding::BASE64URL_NOPAD as BASE64;
use ring::{
    digest,
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
        RsaKeyPair, RsaPublicKeyComponents,
    },
};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Value, json};

/// Signs tokens.
pub(crate) enum SigningKey {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl SigningKey {
    /// A key of the tests alone: making an RSA key takes seconds.
    pub(crate) fn rsa() -> Self {
        let der = PrivatePkcs8KeyDer::from_pem_slice(include_bytes!("issuer-rsa.pem"));
        let der = der.expect("a key");
        Self::Rsa(RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).expect("a key"))
    }

    pub(crate) fn ec() -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("entropy");
        Self::Ec(EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).expect("a key"))
    }

    pub(crate) fn ed() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("entropy");
        Self::Ed(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("a key"))
    }

    pub(crate) const fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "RS256",
            Self::Ec(_) => "ES256",
            Self::Ed(_) => "EdDSA",
        }
    }

    /// As it is published.
    pub(crate) fn jwk(&self, id: &str) -> Value {
        let text = |bytes: &[u8]| BASE64.encode(bytes);
        match self {
            Self::Rsa(key) => {
                let public = RsaPublicKeyComponents::<Vec<u8>>::from(key.public());
                json!({
                    "kty": "RSA", "kid": id, "use": "sig", "alg": "RS256",
                    "n": text(&public.n), "e": text(&public.e),
                })
            }
            Self::Ec(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                json!({ "kty": "EC", "kid": id, "crv": "P-256", "x": text(x), "y": text(y) })
            }
            Self::Ed(key) => json!({
                "kty": "OKP", "kid": id, "use": "sig", "crv": "Ed25519",
                "x": text(key.public_key().as_ref()),
            }),
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).expect("signs");
                signature
            }
            Self::Ec(key) => key.sign(&random, message).expect("signs").as_ref().to_vec(),
            Self::Ed(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    /// A token with this header and these claims.
    pub(crate) fn token_with(&self, header: &Value, claims: &Value) -> String {
        let text = |value: &Value| BASE64.encode(value.to_string().as_bytes());
        let message = format!("{}.{}", text(header), text(claims));
        let signature = self.sign(message.as_bytes());
        format!("{message}.{}", BASE64.encode(&signature))
    }

    pub(crate) fn token(&self, id: &str, claims: &Value) -> String {
        let header = json!({ "typ": "JWT", "alg": self.algorithm(), "kid": id });
        self.token_with(&header, claims)
    }
}

/// What the issuer does now.
#[derive(Default)]
pub(crate) struct Behaviour {
    /// It answers nothing.
    pub(crate) away: bool,
    /// The keys it publishes.
    pub(crate) keys: Vec<Value>,
    /// How often it was asked for them.
    pub(crate) asked: u32,
    /// Describes itself as this, instead of what it is.
    pub(crate) calls_itself: Option<String>,
    /// Sends whoever asks for keys to another place.
    pub(crate) redirects: bool,
    /// The challenge of the sign-in under way, and the token that it ends in.
    pub(crate) sign_in: Option<(String, String)>,
}

/// A running issuer.
#[derive(Clone)]
pub(crate) struct LocalIssuer {
    pub(crate) name: String,
    behaviour: Arc<Mutex<Behaviour>>,
}

impl LocalIssuer {
    pub(crate) async fn start(keys: Vec<Value>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let name = format!("http://{}/realm", listener.local_addr().expect("bound"));
        let behaviour = Arc::new(Mutex::new(Behaviour { keys, ..Behaviour::default() }));
        let issuer = Self { name, behaviour };
        let router = Router::new()
            .route("/realm/.well-known/openid-configuration", get(describe))
            .route("/realm/keys", get(publish))
            .route("/realm/token", post(trade))
            .with_state(issuer.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        issuer
    }

    pub(crate) fn now(&self) -> MutexGuard<'_, Behaviour> {
        self.behaviour.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn describe(State(issuer): State<LocalIssuer>) -> Response {
    let now = issuer.now();
    if now.away {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let name = &issuer.name;
    Json(json!({
        "issuer": now.calls_itself.as_ref().unwrap_or(name),
        "jwks_uri": format!("{name}/keys"),
        "authorization_endpoint": format!("{name}/authorize"),
        "token_endpoint": format!("{name}/token"),
    }))
    .into_response()
}

async fn publish(State(issuer): State<LocalIssuer>) -> Response {
    let mut now = issuer.now();
    now.asked += 1;
    if now.redirects {
        let elsewhere = [(header::LOCATION, format!("{}/elsewhere", issuer.name))];
        return (StatusCode::FOUND, elsewhere).into_response();
    }
    Json(json!({ "keys": now.keys })).into_response()
}

async fn trade(State(issuer): State<LocalIssuer>, form: String) -> Response {
    let field = |name: &str| {
        let value = form.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_default().to_owned()
    };
    let hash = digest::digest(&digest::SHA256, field("code_verifier").as_bytes());
    let challenge = BASE64.encode(hash.as_ref());
    // A code works once.
    match issuer.now().sign_in.take() {
        Some((begun, token))
            if begun == challenge
                && field("code") == "a-code"
                && field("grant_type") == "authorization_code"
                && field("client_id") == "dashboard" =>
        {
            Json(json!({ "access_token": "opaque", "id_token": token })).into_response()
        }
        _ => {
            let refusal = json!({ "error": "invalid_grant", "error_description": "no such code" });
            (StatusCode::BAD_REQUEST, Json(refusal)).into_response()
        }
    }
}
