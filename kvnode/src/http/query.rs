//! The query of `GET /kvs`: which keys, how many, from where.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kvnode_core::request::Op;
use kvnode_types::ident::Key;
use percent_encoding::percent_decode_str;

use super::reply::Refusal;

/// Keys of a page where the client doesn't say.
const PAGE_DEFAULT: u32 = 100;
/// Keys of a page at most: what one answer may cost every shard. Whoever asks for more gets so many, and a cursor.
const PAGE_MAX: u32 = 1000;

/// The cursor after which the next page starts.
pub fn cursor(last: &Key) -> String {
    URL_SAFE_NO_PAD.encode(last.as_bytes())
}

/// Unknown parameters are ignored; of one given twice the last counts; an empty `prefix` or `cursor` counts as absent.
pub fn list(query: &str) -> Result<Op, Refusal> {
    let (mut prefix, mut after, mut limit) = (String::new(), None, PAGE_DEFAULT);
    for pair in query.split('&') {
        let (name, raw) = pair.split_once('=').unwrap_or((pair, ""));
        match name {
            "prefix" => prefix = decoded(raw, "prefix is not UTF-8")?,
            "limit" => limit = page_size(raw)?,
            "cursor" => after = position(&decoded(raw, "cursor was not made by this store")?)?,
            _ => {}
        }
    }
    Ok(Op::List { prefix, after, limit })
}

/// Form-encoded, as every client library writes a query: `+` is a space.
fn decoded(raw: &str, what: &'static str) -> Result<String, Refusal> {
    let spaced = raw.replace('+', " ");
    let text = percent_decode_str(&spaced).decode_utf8();
    Ok(text.map_err(|_| Refusal::BadQuery(what))?.into_owned())
}

fn page_size(raw: &str) -> Result<u32, Refusal> {
    let bad = Refusal::BadQuery("limit must be a whole number from 1");
    if raw.is_empty() || !raw.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad);
    }
    let limit: u32 = raw.parse().map_err(|_| bad.clone())?;
    if limit == 0 { Err(bad) } else { Ok(limit.min(PAGE_MAX)) }
}

fn position(raw: &str) -> Result<Option<Key>, Refusal> {
    if raw.is_empty() {
        return Ok(None);
    }
    let key = URL_SAFE_NO_PAD.decode(raw).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    Ok(Some(Arc::from(key.ok_or(Refusal::BadQuery("cursor was not made by this store"))?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(prefix: &str, after: Option<&str>, limit: u32) -> Result<Op, Refusal> {
        Ok(Op::List { prefix: prefix.to_owned(), after: after.map(Arc::from), limit })
    }

    #[test]
    fn queries() {
        assert_eq!(list(""), op("", None, 100));
        assert_eq!(list("prefix=a%2Fb+c&limit=7&other=1"), op("a/b c", None, 7));
        assert_eq!(list("limit=1000&cursor="), op("", None, 1000));
        assert_eq!(list("limit=1001"), op("", None, 1000));
        let next = format!("cursor={}", cursor(&Arc::from("é/?")));
        assert_eq!(list(&next), op("", Some("é/?"), 100));
    }

    #[test]
    fn bad_queries() {
        let limits = ["limit=", "limit=0", "limit=-1", "limit=+1", "limit=x", "limit=1180591620717411303424"];
        for bad in limits.into_iter().chain(["limit", "cursor=null", "cursor=%41", "cursor=!", "prefix=%FF"]) {
            assert!(matches!(list(bad), Err(Refusal::BadQuery(_))), "{bad}");
        }
    }
}
