//! A reshard, and a drill, while clients write and read back.

use std::collections::BTreeSet;
use std::fs::File;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use kvnode_client::{Client, Session};

use crate::support::{Cluster, until};
use crate::{cluster, engine, options, port};

/// What a session wrote and was told to be written, and what went wrong.
#[derive(Default)]
struct Journal {
    acknowledged: Vec<(String, usize)>,
    offences: Vec<String>,
}

/// The node that is not asked because it is dead or about to be, and how often there was one: an operation that began before
/// it died may end when it is back.
#[derive(Clone, Default)]
struct Outage {
    node: Option<String>,
    count: usize,
}

/// Tells the sessions to end, even where the test ends in a panic and would wait for them.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One session that writes new keys through some nodes and reads them back through others, until told to stop. A write whose
/// answer is lost with the node that was asked counts for nothing; a key that was acknowledged must be found.
fn work(index: usize, endpoints: &[String], outage: &Mutex<Outage>, stop: &AtomicBool) -> Journal {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (mut session, mut journal) = (Session::default(), Journal::default());
    let look = || outage.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let before = look();
        let met_one = || before.node.is_some() || look().count != before.count;
        let nodes: Vec<&String> = endpoints.iter().filter(|&node| Some(node) != before.node.as_ref()).collect();
        let client = |offset: usize| Client::new(vec![nodes[(number * 5 + offset) % nodes.len()].clone()]);
        let key = format!("load-{index}-{number}");
        let value = serde_json::value::to_raw_value(&number).expect("a number");
        match runtime.block_on(client(index).put(&key, &value, &mut session)) {
            Ok(answer) if answer.is_success() => journal.acknowledged.push((key.clone(), number)),
            // The node that was killed, or the one that passed the write on to it.
            Ok(_) if met_one() => continue,
            Ok(answer) => {
                journal.offences.push(format!("put {key}: {}", answer.error()));
                continue;
            }
            Err(_) if met_one() => continue,
            Err(error) => {
                journal.offences.push(format!("put {key}: {error}"));
                continue;
            }
        }
        match runtime.block_on(client(index + 3).get(&key, &mut session)) {
            Ok(answer) if answer.is_success() => {
                if answer.json()["value"] != number {
                    journal.offences.push(format!("get {key}: {}", answer.json()));
                }
            }
            Ok(answer) if answer.status == 503 && met_one() => {}
            Ok(answer) => journal.offences.push(format!("get {key}: {}", answer.error())),
            Err(_) if met_one() => {}
            Err(error) => journal.offences.push(format!("get {key}: {error}")),
        }
    }
    journal
}

#[test]
fn resharding_under_load_with_a_node_killed_on_the_way() {
    let Some(_turn) = engine() else { return };
    let cluster = cluster("grow", 6);
    cluster.up();
    for number in 0..300 {
        cluster.ok(&["put", &format!("key-{number}"), &number.to_string()]);
    }
    cluster.ok(&["node", "add", "grace"]);
    let endpoints = cluster.endpoints();
    assert_eq!(endpoints.len(), 7);
    let (outage, stop) = (Mutex::new(Outage::default()), AtomicBool::new(false));
    let journals: Vec<Journal> = std::thread::scope(|scope| {
        let ends = Stop(&stop);
        let loads: Vec<_> = (0..4)
            .map(|index| {
                scope.spawn({
                    let (endpoints, outage, stop) = (&endpoints, &outage, &stop);
                    move || work(index, endpoints, outage, stop)
                })
            })
            .collect();
        cluster.ok(&["reshard", "3", "--yes"]);
        assert_eq!(cluster.ok(&["shard", "ids"]).lines().count(), 3);
        // The way back, with a node that dies as soon as it has begun. Before that, it may be the one that is asked to begin.
        let change = || -> serde_json::Value {
            serde_json::from_str(&cluster.ok(&["reshard", "status", "-o", "json"])).expect("one document")
        };
        let there = change();
        let errors = cluster.home().join("back");
        let mut back = cluster.command(&["reshard", "2", "--yes"]);
        let mut back =
            back.stdout(Stdio::null()).stderr(File::create(&errors).expect("a file")).spawn().expect("kvctl starts");
        until("the way back has begun", || {
            change()["job"] != there["job"] || back.try_wait().expect("a state").is_some()
        });
        *outage.lock().unwrap_or_else(PoisonError::into_inner) = Outage { node: Some(endpoints[1].clone()), count: 1 };
        cluster.ok(&["node", "kill", "bob"]);
        cluster.up();
        outage.lock().unwrap_or_else(PoisonError::into_inner).node = None;
        let ended = back.wait().expect("kvctl ends");
        assert!(ended.success(), "{ended}: {}", std::fs::read_to_string(&errors).expect("UTF-8"));
        assert_eq!(change()["phase"], "done");
        drop(ends);
        loads.into_iter().map(|load| load.join().expect("a session ends")).collect()
    });
    let offences: Vec<&String> = journals.iter().flat_map(|journal| &journal.offences).collect();
    assert!(offences.is_empty(), "{offences:?}");
    let acknowledged: Vec<_> = journals.iter().flat_map(|journal| &journal.acknowledged).collect();
    assert!(acknowledged.len() > 50, "only {} writes", acknowledged.len());
    cluster.ok(&["wait", "--for", "converged"]);
    assert_eq!(cluster.ok(&["shard", "ids"]).lines().count(), 2);
    let keys: BTreeSet<String> = cluster.ok(&["keys"]).lines().map(str::to_owned).collect();
    let lost: Vec<_> = acknowledged.iter().filter(|(key, _)| !keys.contains(key)).collect();
    assert!(lost.is_empty(), "acknowledged and gone: {lost:?}");
    assert!((0..300).all(|number| keys.contains(&format!("key-{number}"))), "keys of before are gone");
}

/// All faults that containers allow, for a minute.
#[test]
fn a_drill_breaks_no_promise() {
    let Some(_turn) = engine() else { return };
    let cluster = Cluster::new("drill", &[options(9, port(180)), vec!["--drill".into()]].concat());
    cluster.up();
    let kept = |name: &str| cluster.home().join(name).to_str().expect("UTF-8").to_owned();
    let (history, page) = (kept("history"), kept("page"));
    let said = cluster.run(&["drill", "--yes", "--duration", "60s", "--history", &history, "--report", &page]);
    println!("{}{}", said.err, said.out);
    assert_eq!(said.code, 0, "{said:?}");
    for kind in ["kill", "pause", "partition", "one-way", "slow", "clock", "reshard", "wipe", "disk-full"] {
        assert!(said.err.lines().next().is_some_and(|line| line.contains(kind)), "{kind}: {said:?}");
    }
}
