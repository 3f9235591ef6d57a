//! Peers prove that they know the cluster's secret: each batch carries an HMAC-SHA256 of itself.
//!
//! That keeps strangers and nodes of other clusters out. It does not hide anything; where the network is not trusted, data
//! on it can still be read.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use hyper::StatusCode;
use sha2::Sha256;

/// The header that carries the proof of a request.
pub const HEADER: &str = "x-kvnode-proof";
/// How a node answers a request whose proof it does not accept, and nothing else at that path.
pub const REFUSED: StatusCode = StatusCode::FORBIDDEN;
/// Bytes of a tag.
pub const TAG_LEN: usize = 32;

/// The secret that all nodes of a cluster were started with, if any. The key's share of the work is done once.
#[derive(Clone)]
pub struct Secret(Option<Hmac<Sha256>>);

impl Secret {
    pub fn new(secret: Option<&str>) -> Self {
        Self(secret.map(|text| Hmac::new_from_slice(text.as_bytes()).expect("HMAC takes keys of any length")))
    }

    pub fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// The tag of a batch; `None` where no secret is set.
    pub fn tag(&self, body: &[u8]) -> Option<[u8; TAG_LEN]> {
        let mac = self.0.clone()?.chain_update(body);
        Some(mac.finalize().into_bytes().into())
    }

    /// Whether the tag shows that the sender of `body` has the same secret, or has none as we.
    pub fn accepts(&self, body: &[u8], tag: Option<&[u8]>) -> bool {
        match (&self.0, tag) {
            (None, None) => true,
            (Some(mac), Some(tag)) => mac.clone().chain_update(body).verify_slice(tag).is_ok(),
            _ => false,
        }
    }

    /// The same as text, for a header; empty where no secret is set.
    pub fn prove(&self, body: &[u8]) -> String {
        self.tag(body).map_or_else(String::new, |tag| URL_SAFE_NO_PAD.encode(tag))
    }

    /// Whether that text shows it.
    pub fn is_proven(&self, body: &[u8], proof: &str) -> bool {
        let Ok(tag) = URL_SAFE_NO_PAD.decode(proof) else { return false };
        self.accepts(body, Some(&tag[..]).filter(|tag| !tag.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_secret_and_the_same_body_are_accepted() {
        let (ours, other, none) = (Secret::new(Some("a")), Secret::new(Some("b")), Secret::new(None));
        for (by, body, of, accepted) in [
            (&ours, b"body", &ours, true),
            (&ours, b"Body", &ours, false),
            (&ours, b"body", &other, false),
            (&ours, b"body", &none, false),
            (&none, b"body", &ours, false),
            (&none, b"body", &none, true),
        ] {
            let tag = of.tag(b"body");
            assert_eq!(by.accepts(body, tag.as_ref().map(|tag| &tag[..])), accepted);
            assert_eq!(by.is_proven(body, &of.prove(b"body")), accepted);
        }
        assert!(!ours.is_proven(b"body", "!") && !none.is_proven(b"body", "!"));
    }
}
