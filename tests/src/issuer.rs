//! An OpenID Connect issuer on this machine that signs in whoever comes, without a question.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use data_encoding::BASE64URL_NOPAD as BASE64;
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData, SigningKey};
use serde_json::{Value, json};

/// A running issuer; it ends with the process.
#[derive(Debug)]
pub struct Issuer {
    name: String,
}

struct Signer {
    name: String,
    key: KeyPair,
    /// The value of the role claim of everybody.
    group: String,
}

impl Issuer {
    /// Starts one whose people are all of a group.
    ///
    /// # Panics
    /// If there is no port or no entropy.
    #[must_use]
    pub fn start(group: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let name = format!("http://{}", listener.local_addr().expect("bound"));
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let signer = Arc::new(Signer { name: name.clone(), key, group: group.to_owned() });
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let signer = signer.clone();
                // A browser opens connections that it may never use.
                std::thread::spawn(move || answer(&stream, &signer));
            }
        });
        Self { name }
    }

    /// The lines of `[api]` that trust it.
    #[must_use]
    pub fn config(&self) -> String {
        format!(
            "[api.oidc]\nissuer = \"{}\"\naudience = \"tributary\"\nclient_id = \"dashboard\"\n\
             name_claim = \"email\"\nroles = [{{ value = \"operators\", role = \"operator\" }}]\n",
            self.name
        )
    }
}

/// Answers one request, if one comes.
fn answer(stream: &TcpStream, signer: &Signer) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).is_err() || line.is_empty() {
        return;
    }
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        match reader.read_line(&mut header) {
            Ok(read) if read > 2 => {}
            _ => break,
        }
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    let _ = reader.read_exact(&mut body);
    let (status, headers, body) = respond(&target, &String::from_utf8_lossy(&body), signer);
    let mut stream = stream;
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\n{headers}connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
}

fn respond(target: &str, body: &str, signer: &Signer) -> (&'static str, String, String) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let document = |document: Value| {
        ("200 OK", "content-type: application/json\r\n".to_owned(), document.to_string())
    };
    let name = &signer.name;
    match path {
        "/.well-known/openid-configuration" => document(json!({
            "issuer": name,
            "jwks_uri": format!("{name}/keys"),
            "authorization_endpoint": format!("{name}/authorize"),
            "token_endpoint": format!("{name}/token"),
        })),
        "/keys" => document(json!({ "keys": [{
            "kty": "OKP", "crv": "Ed25519", "kid": "one",
            "x": BASE64.encode(signer.key.der_bytes()),
        }] })),
        "/authorize" => {
            let asked = pairs(query);
            let value = |key: &str| asked.get(key).cloned().unwrap_or_default();
            // The nonce is all that is needed later, so it is the code.
            let back = format!(
                "{}?state={}&code={}",
                value("redirect_uri"),
                value("state"),
                value("nonce")
            );
            ("302 Found", format!("location: {back}\r\n"), String::new())
        }
        "/token" => {
            let nonce = pairs(body).remove("code").unwrap_or_default();
            document(json!({ "id_token": signer.token(&nonce) }))
        }
        _ => ("404 Not Found", String::new(), String::new()),
    }
}

impl Signer {
    #[expect(clippy::disallowed_methods, reason = "tokens of another process are of now")]
    fn token(&self, nonce: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let header = json!({ "alg": "EdDSA", "kid": "one", "typ": "JWT" });
        let claims = json!({
            "iss": self.name, "aud": "dashboard", "sub": "1", "email": "alice@example.org",
            "iat": now, "exp": now + 600, "nonce": nonce, "roles": [self.group],
        });
        let text = |value: &Value| BASE64.encode(value.to_string().as_bytes());
        let message = format!("{}.{}", text(&header), text(&claims));
        let signature = self.key.sign(message.as_bytes()).expect("signs");
        format!("{message}.{}", BASE64.encode(&signature))
    }
}

/// The values of a query or a form.
fn pairs(text: &str) -> BTreeMap<String, String> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        Some((key.to_owned(), unescape(value)))
    };
    text.split('&').filter_map(pair).collect()
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let hex: String = rest.by_ref().take(2).map(char::from).collect();
        bytes.extend(u8::from_str_radix(&hex, 16));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
