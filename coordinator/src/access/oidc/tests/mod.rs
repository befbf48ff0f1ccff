//! Tokens of a local issuer: which admit, which do not, and when its keys are asked for.

pub(crate) mod local_issuer;

use std::path::Path;

use data_encoding::BASE64URL_NOPAD as BASE64;
use ring::{digest, hmac};
use serde_json::{Value, json};
use tributary_protocol::time::Timestamp;

use self::local_issuer::{LocalIssuer, SigningKey};
use super::*;
use crate::access::Role;

const NOW_S: u64 = 1_800_000_000;
const NOW: Timestamp = Timestamp(NOW_S * 1000);

pub(crate) fn config(issuer: &str) -> OidcConfig {
    let text = format!(
        "issuer = {issuer:?}\naudience = 'coordinator'\nclient_id = 'dashboard'\n\
         role_claim = 'realm.roles'\nclock_skew_s = 30\nlifetime_max_s = 3600\n\
         roles = [{{ value = 'fl-ops', role = 'operator' }}, {{ value = 'fl-hospital', role = 'tenant-admin' }}]"
    );
    toml::from_str(&text).expect("valid")
}

pub(crate) fn claims(issuer: &str, now_s: u64) -> Value {
    json!({
        "iss": issuer, "aud": ["other", "coordinator"], "sub": "alice",
        "iat": now_s - 10, "nbf": now_s - 10, "exp": now_s + 600,
        "realm": { "roles": ["everybody", "fl-ops"] },
    })
}

struct World {
    issuer: LocalIssuer,
    oidc: Oidc,
    rsa: SigningKey,
    ec: SigningKey,
    ed: SigningKey,
}

impl World {
    async fn new() -> Self {
        let (rsa, ec, ed) = (SigningKey::rsa(), SigningKey::ec(), SigningKey::ed());
        let keys = vec![
            rsa.jwk("rsa"),
            ec.jwk("ec"),
            ed.jwk("ed"),
            json!({ "kty": "oct", "kid": "secret", "k": "AAAA" }),
            json!({ "kty": "EC", "kid": "curve", "crv": "P-384", "x": "AAAA", "y": "AAAA" }),
            json!("no key at all"),
        ];
        let issuer = LocalIssuer::start(keys).await;
        let oidc = Oidc::new(config(&issuer.name), Path::new(".")).expect("valid");
        Self { issuer, oidc, rsa, ec, ed }
    }

    fn claims(&self) -> Value {
        claims(&self.issuer.name, NOW_S)
    }

    /// The usual claims, with some replaced; null removes one.
    fn with(&self, changes: Value) -> Value {
        let mut claims = self.claims();
        for (claim, value) in changes.as_object().expect("a table") {
            let table = claims.as_object_mut().expect("a table");
            match value {
                Value::Null => drop(table.remove(claim)),
                value => drop(table.insert(claim.clone(), value.clone())),
            }
        }
        claims
    }

    async fn ask(&self, token: &str) -> Result<Principal, OidcError> {
        self.oidc.authenticate(token, NOW).await
    }
}

#[tokio::test]
async fn each_algorithm_admits_with_the_role_of_the_claim() {
    let world = World::new().await;
    for (key, id) in [(&world.rsa, "rsa"), (&world.ec, "ec"), (&world.ed, "ed")] {
        let holder = world.ask(&key.token(id, &world.claims())).await.expect("admitted");
        assert_eq!(holder.name, "oidc:alice", "{id}");
        assert_eq!((holder.role, holder.tenants), (Role::Operator, None), "{id}");
    }
    let hospital = json!({ "realm": { "roles": "fl-hospital" }, "tenants": ["alpha", "beta"] });
    let holder = world.ask(&world.ec.token("ec", &world.with(hospital))).await.expect("admitted");
    assert_eq!(holder.role, Role::TenantAdmin);
    let tenants: Vec<_> = holder.tenants.expect("named").iter().map(ToString::to_string).collect();
    assert_eq!(tenants, ["alpha", "beta"]);
    let without_id = json!({ "alg": "EdDSA" });
    let token = world.ed.token_with(&without_id, &world.claims());
    world.ask(&token).await.expect("the only key of its kind");
    let id_token = world.with(json!({ "aud": "dashboard" }));
    world.ask(&world.ec.token("ec", &id_token)).await.expect("an ID token of the dashboard");
    assert_eq!(world.issuer.now().asked, 1, "keys are kept");
}

#[tokio::test]
async fn what_is_not_signed_by_the_issuer_is_refused() {
    let world = World::new().await;
    let claims = world.claims();
    let algorithm = |name: &str| Err(OidcError::Algorithm { algorithm: name.to_owned() });
    let header = |alg: &str, id: &str| json!({ "typ": "JWT", "alg": alg, "kid": id });
    let good = world.rsa.token("rsa", &claims);
    // The public key as a secret that both sides know.
    let jwk = world.rsa.jwk("rsa").to_string();
    let secret = hmac::Key::new(hmac::HMAC_SHA256, jwk.as_bytes());
    let text = |value: &Value| BASE64.encode(value.to_string().as_bytes());
    let message = format!("{}.{}", text(&header("HS256", "rsa")), text(&claims));
    let tag = hmac::sign(&secret, message.as_bytes());
    let confused = format!("{message}.{}", BASE64.encode(tag.as_ref()));
    let unsigned = format!("{}.{}.", text(&header("none", "rsa")), text(&claims));
    let (head, rest) = good.split_once('.').expect("three parts");
    let signature = rest.split_once('.').expect("two parts").1;
    let promoted = world.with(json!({ "sub": "mallory" }));
    let altered = format!("{head}.{}.{signature}", text(&promoted));
    let stranger = SigningKey::ec();
    for (what, token, expected) in [
        ("a public key as a secret", confused, algorithm("HS256")),
        ("no signature", unsigned, algorithm("none")),
        (
            "another family",
            world.ec.token_with(&header("ES384", "ec"), &claims),
            algorithm("ES384"),
        ),
        ("a changed claim", altered, Err(OidcError::Signature)),
        ("somebody else's key", stranger.token("ec", &claims), Err(OidcError::Signature)),
        (
            "a key of another kind",
            world.ec.token_with(&header("RS256", "ec"), &claims),
            Err(OidcError::KeyUnknown),
        ),
        (
            "a published secret",
            world.ec.token_with(&header("ES256", "secret"), &claims),
            Err(OidcError::KeyUnknown),
        ),
        ("an unknown key", stranger.token("new", &claims), Err(OidcError::KeyUnknown)),
        (
            "an extension that must be understood",
            world.ec.token_with(
                &json!({ "alg": "ES256", "kid": "ec", "crit": ["x"], "x": 1 }),
                &claims,
            ),
            Err(OidcError::Signature),
        ),
        (
            "a signed message of another kind",
            world
                .ec
                .token_with(&json!({ "alg": "ES256", "kid": "ec", "typ": "logout+jwt" }), &claims),
            Err(OidcError::Kind { kind: "logout+jwt".to_owned() }),
        ),
        (
            "claims that are no table",
            world.ec.token("ec", &json!(["a"])),
            Err(OidcError::Malformed),
        ),
        ("two parts", "a.b".to_owned(), Err(OidcError::Malformed)),
        ("five parts", "a.b.c.d.e".to_owned(), Err(OidcError::Malformed)),
        ("garbage", "é.\u{0}.!".to_owned(), Err(OidcError::Malformed)),
        ("something huge", format!("{}.b.c", "a".repeat(20_000)), Err(OidcError::Malformed)),
    ] {
        assert_eq!(world.ask(&token).await.map(|_| ()), expected, "{what}");
    }
    world.ask(&good).await.expect("the real one still admits");
}

#[tokio::test]
async fn claims_must_be_of_now_and_for_this_coordinator() {
    let world = World::new().await;
    let claim = |claim: &str| OidcError::Claim { claim: claim.to_owned() };
    let lifetime = OidcError::Lifetime { lifetime_s: 3611, lifetime_max_s: 3600 };
    let audience = OidcError::Audience { expected: "coordinator".to_owned() };
    let no_role = OidcError::NoRole { claim: "realm.roles".to_owned() };
    let no_tenants = OidcError::NoTenants { claim: "tenants".to_owned() };
    let hospital = json!({ "roles": ["fl-hospital"] });
    for (changes, expected) in [
        (json!({ "iss": "http://127.0.0.1:1" }), OidcError::Issuer),
        (json!({ "iss": null }), OidcError::Issuer),
        (json!({ "aud": "other" }), audience.clone()),
        (json!({ "aud": null }), audience.clone()),
        (json!({ "aud": { "coordinator": true } }), audience.clone()),
        (json!({ "aud": ["dashboard", "other"], "azp": "other" }), audience),
        (json!({ "exp": NOW_S - 30 }), OidcError::Expired),
        (json!({ "exp": (NOW_S + 600).to_string() }), claim("exp")),
        (json!({ "exp": null }), claim("exp")),
        (json!({ "exp": -1 }), claim("exp")),
        (json!({ "iat": null }), claim("iat")),
        (json!({ "iat": NOW_S + 31 }), OidcError::TooEarly),
        (json!({ "nbf": NOW_S + 31 }), OidcError::TooEarly),
        (json!({ "nbf": "tomorrow" }), claim("nbf")),
        (json!({ "exp": NOW_S + 3601 }), lifetime),
        (json!({ "realm": { "roles": ["everybody"] } }), no_role.clone()),
        (json!({ "realm": { "roles": { "fl-ops": true } } }), no_role.clone()),
        (json!({ "realm": null }), no_role),
        (json!({ "realm": hospital }), no_tenants),
        (json!({ "realm": hospital, "tenants": ["Not a name"] }), claim("tenants")),
        (json!({ "sub": null }), claim("sub")),
        (json!({ "sub": "\u{1b}\n" }), claim("sub")),
    ] {
        let token = world.ec.token("ec", &world.with(changes.clone()));
        assert_eq!(world.ask(&token).await.map(|_| ()), Err(expected), "{changes}");
    }
    for changes in [
        json!({ "exp": NOW_S - 29 }),
        json!({ "iat": NOW_S + 30, "nbf": NOW_S + 30 }),
        json!({ "nbf": null }),
        json!({ "exp": NOW_S as f64 + 0.5 }),
        json!({ "aud": "coordinator", "azp": "some-client" }),
    ] {
        let token = world.ec.token("ec", &world.with(changes.clone()));
        assert!(world.ask(&token).await.is_ok(), "{changes}");
    }
    let named = world.with(json!({ "sub": format!("a\u{7}{}", "b".repeat(500)) }));
    let holder = world.ask(&world.ec.token("ec", &named)).await.expect("admitted");
    assert_eq!(holder.name.len(), "oidc:".len() + 128, "names are bounded");
}

#[tokio::test]
async fn keys_rotate_and_strangers_do_not_make_the_issuer_busy() {
    let world = World::new().await;
    let old = world.ec.token("ec", &world.with(json!({ "exp": NOW_S + 3000 })));
    world.ask(&old).await.expect("admitted");
    let next = SigningKey::ec();
    world.issuer.now().keys = vec![next.jwk("next"), world.ec.jwk("ec")];
    let new = next.token("next", &world.claims());
    for _ in 0..20 {
        let refused = world.oidc.authenticate(&new, NOW.after_ms(29_999)).await;
        assert_eq!(refused.map(|_| ()), Err(OidcError::KeyUnknown));
    }
    assert_eq!(world.issuer.now().asked, 1, "unknown keys wait for the pause");
    world.oidc.authenticate(&new, NOW.after_ms(30_000)).await.expect("asked again");
    assert_eq!(world.issuer.now().asked, 2);
    // A withdrawn key holds until the answer is old.
    world.issuer.now().keys = vec![next.jwk("next")];
    let fresh = NOW.after_ms(30_000 + 15 * 60_000 - 1);
    world.oidc.authenticate(&old, fresh).await.expect("not asked yet");
    let gone = world.oidc.authenticate(&old, fresh.after_ms(1)).await;
    assert_eq!(gone.map(|_| ()), Err(OidcError::KeyUnknown));
    assert_eq!(world.issuer.now().asked, 3);
}

#[tokio::test]
async fn while_the_issuer_is_away_its_keys_hold_for_a_day() {
    let world = World::new().await;
    world.issuer.now().away = true;
    let token = world.ec.token("ec", &world.claims());
    assert_eq!(world.ask(&token).await.map(|_| ()), Err(OidcError::Unavailable));
    world.issuer.now().away = false;
    world.oidc.authenticate(&token, NOW.after_ms(30_000)).await.expect("it is back");
    world.issuer.now().away = true;
    let day = 24 * 60 * 60_000;
    let late = |ms: u64| {
        let at = NOW.after_ms(30_000 + ms);
        (world.ec.token("ec", &claims(&world.issuer.name, at.0 / 1000)), at)
    };
    let (token, at) = late(day - 1);
    world.oidc.authenticate(&token, at).await.expect("what it published still holds");
    let (token, at) = late(day);
    let refused = world.oidc.authenticate(&token, at).await;
    assert_eq!(refused.map(|_| ()), Err(OidcError::Unavailable));
}

#[tokio::test]
async fn an_issuer_that_calls_itself_something_else_or_points_elsewhere_is_not_believed() {
    let world = World::new().await;
    world.issuer.now().calls_itself = Some("http://127.0.0.1:1/other".to_owned());
    let token = world.ec.token("ec", &world.claims());
    assert_eq!(world.ask(&token).await.map(|_| ()), Err(OidcError::Unavailable));
    {
        let mut now = world.issuer.now();
        (now.calls_itself, now.redirects) = (None, true);
    }
    let refused = world.oidc.authenticate(&token, NOW.after_ms(30_000)).await;
    assert_eq!(refused.map(|_| ()), Err(OidcError::Unavailable));
    world.issuer.now().redirects = false;
    world.oidc.authenticate(&token, NOW.after_ms(60_000)).await.expect("admitted");
}

#[tokio::test]
async fn a_code_is_traded_once_and_only_by_who_began() {
    let world = World::new().await;
    let id_token = |nonce: &str| {
        world.ec.token("ec", &world.with(json!({ "aud": "dashboard", "nonce": nonce })))
    };
    let challenge = BASE64.encode(digest::digest(&digest::SHA256, b"verifier").as_ref());
    let begin = |nonce| {
        world.issuer.now().sign_in = Some((challenge.clone(), id_token(nonce)));
    };
    let exchange = |verifier: &str| Exchange {
        code: "a-code".to_owned(),
        code_verifier: verifier.to_owned(),
        nonce: "mine".to_owned(),
        redirect_uri: "http://localhost/".to_owned(),
    };
    begin("mine");
    let token = world.oidc.exchange(exchange("verifier"), NOW).await.expect("traded");
    world.ask(&token).await.expect("it admits");
    let refused = OidcError::Refused { reason: "no such code".to_owned() };
    let again = world.oidc.exchange(exchange("verifier"), NOW).await;
    assert_eq!(again, Err(refused.clone()), "a code works once");
    begin("mine");
    assert_eq!(world.oidc.exchange(exchange("guess"), NOW).await, Err(refused));
    begin("somebody-else's");
    assert_eq!(world.oidc.exchange(exchange("verifier"), NOW).await, Err(OidcError::Nonce));
}

#[test]
fn a_configuration_that_cannot_work_is_named() {
    let good = config("https://login.example.org/realm");
    good.validate().expect("valid");
    config("http://[::1]:8080/realm").validate().expect("loopback");
    for issuer in [
        "http://login.example.org",
        "http://localhost.example.org",
        "http://127.0.0.1@example.org",
        "https://",
        "ftp://localhost",
        "login.example.org",
    ] {
        let error = config(issuer).validate().expect_err(issuer).to_string();
        assert!(error.contains(issuer), "{error}");
    }
    let refused = |change: fn(&mut OidcConfig)| {
        let mut config = good.clone();
        change(&mut config);
        config.validate().expect_err("refused").to_string()
    };
    assert!(refused(|config| config.audience.clear()).contains("audience"));
    assert!(refused(|config| config.roles.clear()).contains("roles"));
    assert!(refused(|config| config.roles[0].role = Role::Administrator).contains("administrator"));
    assert!(refused(|config| config.clock_skew_s = 301).contains("301"));
    assert!(refused(|config| config.lifetime_max_s = 86_401).contains("86401"));
    let missing = OidcConfig { authority: Some("nowhere.pem".into()), ..good.clone() };
    let error = Oidc::new(missing, Path::new("/")).expect_err("no such file").to_string();
    assert!(error.contains("nowhere.pem"), "{error}");
    let unknown = "issuer = 'https://x'\naudience = 'y'\nroles = []\nrole = 'z'";
    let error = toml::from_str::<OidcConfig>(unknown).expect_err("unknown key").to_string();
    assert!(error.contains("unknown field") && error.contains("role"), "{error}");
}
