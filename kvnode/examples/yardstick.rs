//! What HTTP alone costs: a minimal warp server over a map, to measure a node against.
//!
//! Usage: cargo run --release -p kvnode --example yardstick -- 127.0.0.1:9000 [one-thread]
//!
//! It runs as such servers usually do, with a thread per core. With `one-thread` it has one, as a node has, which is cheaper: under a
//! closed loop that one never sleeps.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use warp::Filter;
use warp::http::{Response, StatusCode};

#[derive(Deserialize)]
struct Put {
    value: Box<RawValue>,
}

type Map = Arc<Mutex<HashMap<String, String>>>;

fn answer(status: StatusCode, body: String) -> Response<String> {
    let response = Response::builder().status(status).header("content-type", "application/json");
    response.body(body).expect("the headers are constants")
}

fn get(key: String, map: &Map) -> Response<String> {
    match map.lock().expect("nobody panics").get(&key) {
        Some(value) => answer(StatusCode::OK, format!(r#"{{"result":"found","value":{value}}}"#)),
        None => answer(StatusCode::NOT_FOUND, r#"{"error":"Key does not exist"}"#.into()),
    }
}

fn put(key: String, body: &Bytes, map: &Map) -> Response<String> {
    let Ok(put) = serde_json::from_slice::<Put>(body) else {
        return answer(StatusCode::BAD_REQUEST, r#"{"error":"no value"}"#.into());
    };
    let before = map.lock().expect("nobody panics").insert(key, put.value.get().to_owned());
    match before {
        Some(_) => answer(StatusCode::OK, r#"{"result":"replaced"}"#.into()),
        None => answer(StatusCode::CREATED, r#"{"result":"created"}"#.into()),
    }
}

fn main() {
    let address: SocketAddr = match std::env::args().nth(1).and_then(|text| text.parse().ok()) {
        Some(address) => address,
        None => {
            eprintln!("usage: yardstick IP:PORT [one-thread]");
            std::process::exit(2);
        }
    };
    let mut builder = match std::env::args().nth(2).as_deref() {
        Some("one-thread") => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.enable_all().build().expect("a runtime");
    let map = Map::default();
    let gets = {
        let map = map.clone();
        warp::get().and(warp::path!("kvs" / String)).map(move |key| get(key, &map))
    };
    let puts = warp::put()
        .and(warp::path!("kvs" / String))
        .and(warp::body::bytes())
        .map(move |key, body| put(key, &body, &map));
    // The load generator asks before it begins.
    let ready = warp::get().and(warp::path!("ready")).map(StatusCode::default);
    runtime.block_on(warp::serve(gets.or(puts).or(ready)).run(address));
}
