//! Keys: everything secret about one agent in one round, and what is derived from it.

use chacha20::ChaCha20Rng;
use chacha20poly1305::{
    ChaCha20Poly1305, KeyInit,
    aead::{Aead, Payload},
};
use curve25519_dalek::Scalar;
use hkdf::Hkdf;
use rand::SeedableRng;
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{
    Member,
    bytes::ByteArray,
    mask::{Mask, Sign},
    message::{Advert, SealedShares},
    order,
    shamir::Polynomial,
};

/// Which of an agent's two shared secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SecretKind {
    /// What the key of its pairwise masks derives from: revealed if it dropped out.
    MaskKey,
    /// What its self mask derives from: revealed if it survived.
    SelfMask,
}

impl SecretKind {
    const fn label(self) -> &'static [u8] {
        match self {
            Self::MaskKey => b"mask key",
            Self::SelfMask => b"self mask",
        }
    }
}

/// What one agent holds of another's two secrets; zeroised on drop.
#[cfg_attr(test, derive(Clone))]
#[derive(ZeroizeOnDrop)]
pub(super) struct Shares {
    pub(super) mask_key: [u8; 32],
    pub(super) self_mask: [u8; 32],
}

/// Everything secret about one agent in one round; zeroised on drop.
#[derive(Zeroize, ZeroizeOnDrop)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Secrets {
    #[zeroize(skip)]
    context: ByteArray<32>,
    #[zeroize(skip)]
    member: Member,
    mask_seed: Scalar,
    self_mask_seed: Scalar,
    mask_key: [u8; 32],
    #[zeroize(skip)]
    mask_key_public: ByteArray<32>,
    channel_key: [u8; 32],
    #[zeroize(skip)]
    channel_key_public: ByteArray<32>,
    order_root: [u8; 16],
    deal_seed: [u8; 32],
}

impl Secrets {
    /// Derives all secrets from one fresh seed, separately for every round and member.
    pub(super) fn new(context: ByteArray<32>, member: Member, seed: &[u8; 32]) -> Self {
        let scalar = |label: &[u8]| {
            let wide = Zeroizing::new(derive::<64>(seed, label, &context, &[member], &[]));
            Scalar::from_bytes_mod_order_wide(&wide)
        };
        let mask_seed = scalar(b"mask seed");
        let mask_key = mask_key(&context, member, &mask_seed);
        let channel_key =
            StaticSecret::from(derive::<32>(seed, b"channel", &context, &[member], &[]));
        Self {
            context,
            member,
            mask_seed,
            self_mask_seed: scalar(b"self mask seed"),
            mask_key_public: public(&mask_key),
            mask_key: mask_key.to_bytes(),
            channel_key_public: public(&channel_key),
            channel_key: channel_key.to_bytes(),
            order_root: derive(seed, b"order", &context, &[member], &[]),
            deal_seed: derive(seed, b"deal", &context, &[member], &[]),
        }
    }

    pub(super) const fn mask_key_public(&self) -> ByteArray<32> {
        self.mask_key_public
    }

    pub(super) const fn channel_key_public(&self) -> ByteArray<32> {
        self.channel_key_public
    }

    pub(super) fn self_mask_commitment(&self) -> ByteArray<32> {
        self_mask_commitment(&self.context, self.member, &self.self_mask_seed)
    }

    pub(super) fn order_commitment(&self) -> ByteArray<16> {
        order::commitment(&self.context, self.member, &ByteArray(self.order_root))
    }

    pub(super) fn order_opening(&self, attempt: u32) -> ByteArray<16> {
        order::opening(&self.context, self.member, &ByteArray(self.order_root), attempt)
    }

    pub(super) fn self_mask(&self) -> Mask {
        self_mask(&self.context, self.member, &self.self_mask_seed)
    }

    /// The mask with one peer; `None` if the peer's key is of low order.
    pub(super) fn pairwise_mask(&self, peer: Member, peer_key: &ByteArray<32>) -> Option<Mask> {
        let own = (self.member, self.mask_key_public);
        let key = StaticSecret::from(self.mask_key);
        pairwise_mask(&self.context, &key, own, (peer, *peer_key))
    }

    /// The polynomials of the mask seed and the self mask's seed.
    pub(super) fn polynomials(&self, threshold: u32) -> (Polynomial, Polynomial) {
        let mut entropy = ChaCha20Rng::from_seed(self.deal_seed);
        let mask_seed = Polynomial::new(self.mask_seed, threshold, &mut entropy);
        (mask_seed, Polynomial::new(self.self_mask_seed, threshold, &mut entropy))
    }

    /// Encrypts two shares for one holder; `None` if the holder's key is of low order.
    pub(super) fn seal(
        &self,
        holder: Member,
        holder_key: &ByteArray<32>,
        mask_key_share: &Scalar,
        self_mask_share: &Scalar,
    ) -> Option<SealedShares> {
        let commit = |kind, share: &Scalar| {
            share_commitment(&self.context, kind, self.member, holder, &share.to_bytes())
        };
        let mut sealed = SealedShares {
            ciphertext: ByteArray([0; 80]),
            mask_key_share: commit(SecretKind::MaskKey, mask_key_share),
            self_mask_share: commit(SecretKind::SelfMask, self_mask_share),
        };
        let mut plaintext = Zeroizing::new([0; 64]);
        plaintext[..32].copy_from_slice(mask_key_share.as_bytes());
        plaintext[32..].copy_from_slice(self_mask_share.as_bytes());
        let cipher = self.channel(self.member, holder, holder_key)?;
        let payload = Payload { msg: &*plaintext, aad: &associated_data(&sealed) };
        // The key is for this one message, so the nonce is zero.
        let ciphertext = cipher.encrypt(&[0; 12].into(), payload).ok()?;
        sealed.ciphertext.0.copy_from_slice(&ciphertext);
        Some(sealed)
    }

    /// Decrypts what a dealer sent; `None` if it is not what the dealer committed to.
    pub(super) fn open(
        &self,
        dealer: Member,
        dealer_key: &ByteArray<32>,
        sealed: &SealedShares,
    ) -> Option<Shares> {
        let cipher = self.channel(dealer, dealer, dealer_key)?;
        let payload = Payload { msg: &sealed.ciphertext.0, aad: &associated_data(sealed) };
        let plaintext = Zeroizing::new(cipher.decrypt(&[0; 12].into(), payload).ok()?);
        let mut shares = Shares { mask_key: [0; 32], self_mask: [0; 32] };
        shares.mask_key.copy_from_slice(plaintext.get(..32)?);
        shares.self_mask.copy_from_slice(plaintext.get(32..)?);
        let is_committed = |kind, share, commitment: &ByteArray<32>| {
            share_commitment(&self.context, kind, dealer, self.member, share) == *commitment
        };
        (is_committed(SecretKind::MaskKey, &shares.mask_key, &sealed.mask_key_share)
            && is_committed(SecretKind::SelfMask, &shares.self_mask, &sealed.self_mask_share))
        .then_some(shares)
    }

    /// The cipher from `sender` to the other one, of this agent and `peer`.
    fn channel(
        &self,
        sender: Member,
        peer: Member,
        peer_key: &ByteArray<32>,
    ) -> Option<ChaCha20Poly1305> {
        let secret =
            StaticSecret::from(self.channel_key).diffie_hellman(&PublicKey::from(peer_key.0));
        let own = (self.member, self.channel_key_public);
        let (from, to) =
            if sender == peer { ((peer, *peer_key), own) } else { (own, (peer, *peer_key)) };
        let keys = [from.1, to.1];
        let key: Zeroizing<[u8; 32]> = Zeroizing::new(derive(
            secret.as_bytes(),
            b"channel cipher",
            &self.context,
            &[from.0, to.0],
            &keys,
        ));
        secret.was_contributory().then(|| ChaCha20Poly1305::new(&(*key).into()))
    }
}

fn associated_data(sealed: &SealedShares) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(&sealed.mask_key_share.0);
    bytes[32..].copy_from_slice(&sealed.self_mask_share.0);
    bytes
}

/// The key of pairwise masks that belongs to a seed.
fn mask_key(context: &ByteArray<32>, member: Member, seed: &Scalar) -> StaticSecret {
    derive::<32>(seed.as_bytes(), b"mask key", context, &[member], &[]).into()
}

/// The secret key of a member that dropped out, if the seed is the one it advertised.
pub(super) fn recovered_mask_key(
    context: &ByteArray<32>,
    member: Member,
    seed: &Scalar,
    advert: &Advert,
) -> Option<StaticSecret> {
    let key = mask_key(context, member, seed);
    (public(&key) == advert.mask_key).then_some(key)
}

pub(super) fn public(key: &StaticSecret) -> ByteArray<32> {
    ByteArray(PublicKey::from(key).to_bytes())
}

/// The self mask of a member.
pub(super) fn self_mask(context: &ByteArray<32>, member: Member, seed: &Scalar) -> Mask {
    let key = derive(seed.as_bytes(), b"self mask", context, &[member], &[]);
    Mask { key, sign: Sign::Plus }
}

/// What an agent advertises about the seed of its self mask; hides it, since it has 252 bits.
pub(super) fn self_mask_commitment(
    context: &ByteArray<32>,
    member: Member,
    seed: &Scalar,
) -> ByteArray<32> {
    ByteArray(derive(seed.as_bytes(), b"self mask commitment", context, &[member], &[]))
}

/// The mask that one member adds on account of a peer; the lower place adds, the higher subtracts.
///
/// - `own`: the member and the public key of `key`
/// - returns: `None` if the peer's key is of low order
pub(super) fn pairwise_mask(
    context: &ByteArray<32>,
    key: &StaticSecret,
    own: (Member, ByteArray<32>),
    peer: (Member, ByteArray<32>),
) -> Option<Mask> {
    let secret = key.diffie_hellman(&PublicKey::from(peer.1.0));
    let (low, high) = if own.0 < peer.0 { (own, peer) } else { (peer, own) };
    let (members, keys) = ([low.0, high.0], [low.1, high.1]);
    secret.was_contributory().then(|| Mask {
        key: derive(secret.as_bytes(), b"pairwise mask", context, &members, &keys),
        sign: if own.0 == low.0 { Sign::Plus } else { Sign::Minus },
    })
}

/// Whether a key is of low order, so that any secret key gives the same shared secret.
pub(super) fn is_low_order(key: &ByteArray<32>) -> bool {
    let any = StaticSecret::from([1; 32]);
    !any.diffie_hellman(&PublicKey::from(key.0)).was_contributory()
}

/// A dealer's public commitment to one share; hides it, since a share is uniform.
pub(super) fn share_commitment(
    context: &ByteArray<32>,
    kind: SecretKind,
    dealer: Member,
    holder: Member,
    share: &[u8; 32],
) -> ByteArray<32> {
    let mut hasher = blake3::Hasher::new_derive_key("tributary secagg 1 share");
    hasher.update(&context.0).update(kind.label());
    hasher.update(&dealer.0.to_le_bytes()).update(&holder.0.to_le_bytes()).update(share);
    ByteArray(*hasher.finalize().as_bytes())
}

/// HKDF-SHA-256; the label, the round and whom it concerns are all in its `info`.
fn derive<const N: usize>(
    secret: &[u8],
    label: &[u8],
    context: &ByteArray<32>,
    members: &[Member],
    keys: &[ByteArray<32>],
) -> [u8; N] {
    let members: Vec<[u8; 4]> = members.iter().map(|member| member.0.to_le_bytes()).collect();
    // Labels have different lengths, but none is the beginning of another's input by accident:
    // the length comes first.
    let length = [label.len() as u8];
    let mut info: Vec<&[u8]> = vec![&length, label, &context.0];
    info.extend(members.iter().map(|member| &member[..]));
    info.extend(keys.iter().map(|key| &key.0[..]));
    let mut output = [0; N];
    Hkdf::<Sha256>::new(Some(b"tributary secagg 1"), secret)
        .expand_multi_info(&info, &mut output)
        .expect("far fewer bytes than HKDF can give");
    output
}
