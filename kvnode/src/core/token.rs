//! `causal-metadata` on the wire: a context as text that only this cluster can have made.
//!
//! base64url without padding of: version byte, postcard of the context, 8 bytes of HMAC-SHA256 over what precedes, under
//! the cluster's context key. The code keeps a client's mistake, or another cluster's token, from poisoning a clock; it is
//! no secret and grants nothing.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::causal::Context;

const VERSION: u8 = 1;
const MAC_LEN: usize = 8;
/// Longer texts are refused unread. A context of 1,000 origins stays below half of it.
const TEXT_LEN_MAX: usize = 65_536;

fn mac(key: &[u8; 32], bytes: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(bytes);
    mac
}

/// The text of a context.
pub fn encode(key: &[u8; 32], context: &Context) -> String {
    let bytes = postcard::to_extend(context, vec![VERSION]).expect("a context holds nothing that postcard refuses");
    let tag = mac(key, &bytes).finalize().into_bytes();
    URL_SAFE_NO_PAD.encode([&bytes, &tag[..MAC_LEN]].concat())
}

/// The context of a text, or `None` if this cluster did not make the text.
pub fn decode(key: &[u8; 32], text: &str) -> Option<Context> {
    if text.len() > TEXT_LEN_MAX {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (signed, tag) = bytes.split_at_checked(bytes.len().checked_sub(MAC_LEN)?)?;
    mac(key, signed).verify_truncated_left(tag).ok()?;
    let (&VERSION, body) = signed.split_first()? else { return None };
    postcard::from_bytes(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ident::{Epoch, Incarnation, NodeId, Origin};

    fn context(nodes: u32) -> Context {
        let origin = |node| Origin {
            node: NodeId(node),
            epoch: Epoch(1),
            incarnation: Incarnation(1_900_000_000_000 + u64::from(node)),
        };
        Context { epoch: Epoch(1), seen: (1..=nodes).map(|node| (origin(node), 1_000_000)).collect() }
    }

    #[test]
    fn comes_back_as_it_went() {
        for nodes in [0, 1, 6, 100] {
            assert_eq!(decode(&[7; 32], &encode(&[7; 32], &context(nodes))), Some(context(nodes)));
        }
    }

    #[test]
    fn six_nodes_fit_160_characters() {
        let text = encode(&[7; 32], &context(6));
        assert!(text.len() <= 160, "{} characters", text.len());
    }

    #[test]
    fn anything_else_is_refused() {
        let good = encode(&[7; 32], &context(3));
        assert_eq!(decode(&[8; 32], &good), None, "another cluster's");
        for at in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(bytes).unwrap();
            assert_eq!(decode(&[7; 32], &altered), None, "altered at {at}");
            assert_eq!(decode(&[7; 32], &good[..at]), None, "cut at {at}");
        }
        for bad in ["x", "null", "é", &format!("{good}A"), &"A".repeat(100_000)] {
            assert_eq!(decode(&[7; 32], bad), None);
        }
    }
}
