//! Writes whose fate nobody can tell: passed on to a replica that stops just then.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::http::{Answer, Body};
use crate::support::{Cluster, put_body, within};

const CLIENTS: usize = 8;
/// Keys of each client in a round; about half of them are the other shard's.
const KEYS: usize = 40;
/// One round finds such writes nearly always.
const ROUNDS_MAX: usize = 10;
/// A node that nobody stops: it passes the writes on.
const ENTRIES: [usize; 3] = [0, 1, 2];

/// Keys whose last write has an unknown fate, with the context before it.
type Unknown = BTreeMap<String, String>;

/// Clients write "new" over "old" through s1; `stop` is called in the middle. What became of all of them must be known, or
/// be said to be unknown.
fn write_while(c: &mut Cluster, round: usize, stop: impl FnOnce(&mut Cluster)) -> Unknown {
    let keys: Vec<String> = (0..CLIENTS * KEYS).map(|i| format!("r{round}-{i}")).collect();
    let mut token = String::new();
    for (i, key) in keys.iter().enumerate() {
        token = c.put(i % 6, key, "\"old\"", &token).expect_result(201, "created").token();
    }
    let answered = AtomicUsize::new(0);
    let addresses = ENTRIES.map(|node| c.address(node));
    let answers: Vec<(String, Answer)> = std::thread::scope(|scope| {
        let clients: Vec<_> = keys
            .chunks(KEYS)
            .enumerate()
            .map(|(client, keys)| {
                let (answered, token) = (&answered, &token);
                scope.spawn(move || {
                    let write = |(i, key): (usize, &String)| {
                        let body = put_body("\"new\"", token);
                        let path = format!("/kvs/{key}");
                        let bytes = crate::http::request("PUT", path.as_bytes(), &[], Body::Plain(body.as_bytes()));
                        let address = addresses[(client + i) % addresses.len()];
                        let answer = crate::http::exchange(address, &bytes, crate::http::READ_TIMEOUT);
                        answered.fetch_add(1, Ordering::Relaxed);
                        (key.clone(), answer.unwrap_or_else(|error| panic!("PUT {key}: {error}")))
                    };
                    keys.iter().enumerate().map(write).collect::<Vec<_>>()
                })
            })
            .collect();
        within(Duration::from_secs(20), "the clients are at it", || answered.load(Ordering::Relaxed) >= 2 * CLIENTS);
        stop(c);
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let mut unknown = Unknown::new();
    for (key, answer) in answers {
        if answer.status == 503 && answer.json()["outcome"] == "unknown" {
            assert!(!answer.clone().expect_error(503).is_empty());
            unknown.insert(key, token.clone());
        } else {
            answer.expect_result(200, "replaced");
        }
    }
    unknown
}

/// Rounds of [`write_while`] until there is a write of unknown fate, each with another replica of s2 stopped. The replica is
/// left as `stop` left it.
fn provoke(c: &mut Cluster, stop: fn(&mut Cluster, usize), resume: fn(&mut Cluster, usize)) -> (usize, Unknown) {
    for round in 0..ROUNDS_MAX {
        let victim = 3 + round % 3;
        let unknown = write_while(c, round, |c| stop(c, victim));
        if !unknown.is_empty() {
            return (victim, unknown);
        }
        resume(c, victim);
        c.wait_ready(&[victim]);
        c.wait_view(&c.all(), Duration::from_secs(10));
    }
    panic!("no write of unknown fate in {ROUNDS_MAX} rounds");
}

/// Until all nodes answer with the same value for each of these keys; the values.
fn settled(c: &Cluster, keys: &Unknown) -> BTreeMap<String, String> {
    let values = |node: usize| -> BTreeMap<String, String> {
        let value = |key: &String| c.get(node, &format!("/kvs/{key}")).json()["value"].as_str().map(str::to_owned);
        keys.keys().map(|key| (key.clone(), value(key).unwrap_or_default())).collect()
    };
    within(Duration::from_secs(10), "the same values everywhere", || {
        let first = values(0);
        c.all().into_iter().all(|node| values(node) == first)
    });
    values(0)
}

/// Writes every other key again, has the replica back, and looks at what is left of the writes: each took effect at most
/// once. Gives the keys where it did so over the later write.
fn overtaken(c: &mut Cluster, victim: usize, unknown: &Unknown, resume: fn(&mut Cluster, usize)) -> Vec<String> {
    let left: Vec<usize> = c.all().into_iter().filter(|node| *node != victim).collect();
    c.wait_view(&left, Duration::from_secs(10));
    let mut later = BTreeMap::new();
    for (i, (key, token)) in unknown.iter().enumerate() {
        let answer = c.read(left[i % left.len()], key, token).expect_result(200, "found");
        let value = answer.json()["value"].clone();
        assert!(value == "old" || value == "new", "{key}: {answer}");
        if i % 2 == 0 {
            let answer = c.put(left[(i + 1) % left.len()], key, "\"later\"", &answer.token());
            later.insert(key.clone(), answer.expect_result(200, "replaced").token());
        }
    }
    resume(c, victim);
    c.wait_ready(&[victim]);
    c.wait_view(&c.all(), Duration::from_secs(10));
    let values = settled(c, unknown);
    let mut overtaken = Vec::new();
    for (i, (key, value)) in values.iter().enumerate() {
        let possible: &[&str] = if later.contains_key(key) { &["later", "new"] } else { &["old", "new"] };
        assert!(possible.contains(&value.as_str()), "{key}: {value}");
        if let Some(token) = later.get(key) {
            c.read(i % 6, key, token).expect_result(200, "found");
            overtaken.extend((value != "later").then(|| key.clone()));
        }
    }
    // Whatever took effect did so by now: what is written over it stays.
    let mut token = String::new();
    for (i, key) in unknown.keys().enumerate() {
        let read = c.read(i % 6, key, &token).token();
        token = c.put((i + 1) % 6, key, "\"last\"", &read).expect_result(200, "replaced").token();
    }
    assert!(settled(c, unknown).values().all(|value| value == "last"));
    overtaken
}

fn overtaken_by_a_paused_replica() -> Vec<String> {
    let mut c = Cluster::six();
    let pause = |c: &mut Cluster, victim: usize| c.signal(victim, "STOP");
    let resume = |c: &mut Cluster, victim: usize| c.signal(victim, "CONT");
    let (victim, unknown) = provoke(&mut c, pause, resume);
    overtaken(&mut c, victim, &unknown, resume)
}

#[test]
fn a_write_passed_on_to_a_paused_replica_takes_effect_at_most_once_and_never_over_a_later_one() {
    assert_eq!(overtaken_by_a_paused_replica(), [""; 0], "a write of unknown fate took effect over a later one");
}

#[test]
fn a_write_passed_on_to_a_killed_replica_takes_effect_at_most_once_and_never_over_a_later_one() {
    let mut c = Cluster::six();
    let kill = |c: &mut Cluster, victim: usize| c.kill(&[victim]);
    let start = |c: &mut Cluster, victim: usize| c.run(victim, &[]);
    let (victim, unknown) = provoke(&mut c, kill, start);
    assert_eq!(overtaken(&mut c, victim, &unknown, start), [""; 0]);
}
