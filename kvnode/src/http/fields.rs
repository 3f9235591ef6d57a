//! What a request says: the key in its path, the value and the causal metadata in its body and headers.
//!
//! A value is kept as the exact text that the client sent. It is checked to be JSON and never parsed into numbers or
//! maps, so it comes back to the last digit, and no depth of nesting can exhaust the stack (serde_json skips over a raw
//! value with a loop).

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use hyper::HeaderMap;
use kvnode_types::METADATA_HEADER;
use kvnode_types::ident::Key;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::reply::Refusal;

/// A request body, taken apart but not judged.
#[derive(Debug, Default, Deserialize)]
pub struct Fields<'a> {
    /// The value's text; `null` is a value.
    #[serde(default, borrow, deserialize_with = "present")]
    value: Option<&'a RawValue>,
    #[serde(default, borrow, rename = "causal-metadata", deserialize_with = "present")]
    metadata: Option<&'a RawValue>,
}

/// Tells `null` from absent.
fn present<'de, D: Deserializer<'de>>(field: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(field).map(Some)
}

impl<'a> Fields<'a> {
    /// An empty body says nothing; any other must be one JSON object.
    pub fn of(body: &'a [u8]) -> Result<Self, Refusal> {
        if body.is_empty() {
            return Ok(Self::default());
        }
        // Strings in fields that are ignored, too.
        let body = std::str::from_utf8(body).map_err(|_| Refusal::BadBody("it is not UTF-8".to_owned()))?;
        // Without this look an array would pass for the object with its fields in order.
        let is_object = body.trim_ascii_start().starts_with('{');
        if !is_object && serde_json::from_str::<&RawValue>(body).is_ok() {
            return Err(Refusal::BadBody("it must be a JSON object".to_owned()));
        }
        serde_json::from_str(body).map_err(|e| Refusal::BadBody(e.to_string()))
    }

    /// A copy, so that a small value doesn't hold a large body in memory.
    pub fn value(&self) -> Result<Bytes, Refusal> {
        let value = self.value.ok_or(Refusal::NoValue)?;
        Ok(Bytes::copy_from_slice(value.get().as_bytes()))
    }

    /// The tokens that the request carries: none, one, or one of the body and one of the header.
    pub fn tokens(&self, headers: &HeaderMap) -> Result<Vec<String>, Refusal> {
        let of_body = self.metadata.map_or(Ok(None), |raw| token_of_json(raw.get()))?;
        let of_header = token_of_header(headers)?;
        let mut tokens: Vec<String> = of_body.into_iter().chain(of_header).collect();
        tokens.dedup();
        Ok(tokens)
    }
}

/// `None` for what means "I have seen nothing yet".
fn token_of_json(raw: &str) -> Result<Option<String>, Refusal> {
    match raw {
        "null" | "0" => Ok(None),
        text if text.starts_with('"') => match serde_json::from_str::<String>(text) {
            Ok(token) => Ok(Some(token).filter(|token| says_something(token))),
            Err(_) => Err(Refusal::MalformedMetadata),
        },
        _ => Err(Refusal::MalformedMetadata),
    }
}

fn token_of_header(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let mut given = headers.get_all(METADATA_HEADER).iter();
    let Some(value) = given.next() else { return Ok(None) };
    let token = value.to_str().map_err(|_| Refusal::MalformedMetadata)?.trim();
    if given.next().is_some() {
        return Err(Refusal::MalformedMetadata);
    }
    // A header has no types: what is `null` in a body is the word here.
    Ok(Some(token.to_owned()).filter(|token| says_something(token) && token != "null"))
}

fn says_something(token: &str) -> bool {
    !token.is_empty() && token != "0"
}

/// A path's part, decoded. Every `%` must start an escape, and the result must be UTF-8.
pub fn decoded(raw: &str) -> Result<Cow<'_, str>, Refusal> {
    if !raw.contains('%') {
        return Ok(raw.into());
    }
    let escapes_are_whole = raw.split('%').skip(1).all(|rest| {
        let digits = rest.as_bytes();
        digits.len() >= 2 && digits[0].is_ascii_hexdigit() && digits[1].is_ascii_hexdigit()
    });
    if !escapes_are_whole {
        return Err(Refusal::BadKey("a % is not followed by two hexadecimal digits"));
    }
    percent_decode_str(raw).decode_utf8().map_err(|_| Refusal::BadKey("it is not UTF-8"))
}

/// The key that a raw path names, at most `max_chars` characters.
pub fn key(raw: &str, max_chars: usize) -> Result<Key, Refusal> {
    let key = decoded(raw)?;
    if key.chars().count() > max_chars {
        return Err(Refusal::KeyTooLong);
    }
    Ok(Arc::from(&*key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(token: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(METADATA_HEADER, token.parse().unwrap());
        headers
    }

    #[test]
    fn keys_are_decoded_and_measured_in_characters() {
        for (raw, wanted) in
            [("x", "x"), ("a%2Fb/c", "a/b/c"), ("%C3%A9", "é"), ("a+b", "a+b"), ("%00", "\0"), ("é", "é")]
        {
            assert_eq!(key(raw, 50).as_deref(), Ok(wanted), "{raw}");
        }
        assert!(key(&"é".repeat(50), 50).is_ok());
        assert_eq!(key(&"%C3%A9".repeat(51), 50), Err(Refusal::KeyTooLong));
        for bad in ["%", "%2", "%zz", "a%", "%é", "%+1", "%FF", "%C3", "%ED%A0%80"] {
            assert!(matches!(key(bad, 50), Err(Refusal::BadKey(_))), "{bad}");
        }
    }

    #[test]
    fn values_keep_their_text() {
        let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
        let exact =
            ["null", "18446744073709551616", "1.0e400", "0.10", r#"{"b":1,"a":[ 2 ,"\u00e9"]}"#, "\"é\"", "[]", &deep];
        for value in exact {
            let body = format!(r#" {{"x":{{"value":9}}, "value" : {value} , "causal-metadata":null}} "#);
            let fields = Fields::of(body.as_bytes()).unwrap();
            assert_eq!(fields.value().unwrap(), value.as_bytes());
            assert_eq!(fields.tokens(&HeaderMap::new()), Ok(vec![]));
        }
    }

    #[test]
    fn bodies_without_a_value() {
        for body in ["", "{}", r#"{"causal-metadata":"t"}"#, r#"{"Value":1}"#] {
            assert_eq!(Fields::of(body.as_bytes()).unwrap().value(), Err(Refusal::NoValue), "{body}");
        }
    }

    #[test]
    fn bodies_that_are_no_object() {
        let broken: [&[u8]; 13] = [
            b" ",
            b"{",
            b"x",
            b"[1,2]",
            b"null",
            b"\"value\"",
            b"{\"value\":}",
            b"{\"value\":1}}",
            b"{\"value\":01}",
            b"{\"value\":\"\xff\"}",
            b"{\"value\":1,\"note\":\"\xff\"}",
            b"{\"value\":1,\"value\":2}",
            b"{'value':1}",
        ];
        for body in broken {
            assert!(matches!(Fields::of(body), Err(Refusal::BadBody(_))), "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn metadata_that_says_nothing() {
        for text in ["null", "0", r#""""#, r#""0""#] {
            let body = format!(r#"{{"causal-metadata":{text}}}"#);
            assert_eq!(Fields::of(body.as_bytes()).unwrap().tokens(&HeaderMap::new()), Ok(vec![]), "{text}");
        }
        for text in ["", "0", "null", "  "] {
            assert_eq!(Fields::default().tokens(&headers(text)), Ok(vec![]), "{text}");
        }
    }

    #[test]
    fn metadata_of_body_and_header_is_handed_on() {
        let fields = Fields::of(br#"{"causal-metadata":"a"}"#).unwrap();
        assert_eq!(fields.tokens(&HeaderMap::new()), Ok(vec!["a".to_owned()]));
        assert_eq!(fields.tokens(&headers("b")), Ok(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(fields.tokens(&headers("a")), Ok(vec!["a".to_owned()]));
        assert_eq!(Fields::default().tokens(&headers("b")), Ok(vec!["b".to_owned()]));
    }

    #[test]
    fn metadata_of_another_type_is_malformed() {
        for text in ["1", "-0", "0.0", "true", "[]", "{}", r#""\ud800""#] {
            let body = format!(r#"{{"causal-metadata":{text}}}"#);
            let tokens = Fields::of(body.as_bytes()).unwrap().tokens(&HeaderMap::new());
            assert_eq!(tokens, Err(Refusal::MalformedMetadata), "{text}");
        }
        let mut twice = headers("a");
        twice.append(METADATA_HEADER, "b".parse().unwrap());
        assert_eq!(Fields::default().tokens(&twice), Err(Refusal::MalformedMetadata));
    }
}
