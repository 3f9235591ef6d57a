use super::*;

const ME: &str = "10.10.0.2:8090";
const SIX: &str = "10.10.0.2:8090,10.10.0.3:8090,10.10.0.4:8090,10.10.0.5:8090,10.10.0.6:8090,10.10.0.7:8090";

fn args(settings: &[(&str, &str)]) -> Args {
    let mut args = Args { socket_address: Some(ME.into()), ..Args::default() };
    for &(name, value) in settings {
        let value = Some(value.to_owned());
        match name {
            "SOCKET_ADDRESS" => args.socket_address = value,
            "VIEW" => args.view = value,
            "SHARD_COUNT" => args.shard_count = value,
            "LISTEN_ADDRESS" => args.listen_address = value,
            "FORM_WITHOUT" => args.form_without = value,
            "DRILL" => args.drill = value,
            "ACCEPT_DATA_LOSS" => args.accept_data_loss = value,
            "FSYNC" => args.fsync = value,
            "FSYNC_INTERVAL" => args.fsync_interval = value,
            "LOG_LEVEL" => args.log_level = value,
            "LOG_FORMAT" => args.log_format = value,
            "DATA_DIR" => args.data_dir = value,
            "CLUSTER_SECRET" => args.cluster_secret = value,
            other => panic!("no setting {other}"),
        }
    }
    args
}

fn resolved(settings: &[(&str, &str)]) -> Config {
    Config::resolve(&args(settings)).unwrap_or_else(|e| panic!("{settings:?}: {e}"))
}

fn names(view: &[Addr]) -> Vec<&str> {
    view.iter().map(Addr::as_str).collect()
}

#[test]
fn an_address_is_enough() {
    let config = resolved(&[]);
    assert_eq!(names(&config.view), [ME]);
    assert_eq!((config.shard_count, config.shard_count_given), (1, false));
    assert_eq!(config.listen, "0.0.0.0:8090".parse().unwrap());
    assert_eq!(config.fsync, Fsync::Interval(Duration::from_millis(200)));
    assert!(
        !config.drill && config.data_dir.is_none() && config.cluster_secret.is_none() && config.form_without.is_empty()
    );
}

#[test]
fn empty_variables_count_as_missing() {
    let all = ["VIEW", "SHARD_COUNT", "LISTEN_ADDRESS", "FORM_WITHOUT", "FSYNC", "FSYNC_INTERVAL", "LOG_LEVEL"];
    let empty: Vec<_> = all.into_iter().chain(["LOG_FORMAT", "DATA_DIR", "CLUSTER_SECRET"]).map(|n| (n, "")).collect();
    let config = resolved(&empty);
    assert_eq!((names(&config.view), config.shard_count_given), (vec![ME], false));
    assert!(config.data_dir.is_none() && config.cluster_secret.is_none());
}

#[test]
fn the_view_keeps_its_order_and_gains_this_node() {
    assert_eq!(names(&resolved(&[("VIEW", "b:1, a:1,b:1")]).view), ["b:1", "a:1", ME]);
    assert_eq!(names(&resolved(&[("VIEW", "b:1,10.10.0.2:8090,a:1")]).view), ["b:1", ME, "a:1"]);
}

#[test]
fn the_listening_address_follows_the_family() {
    for (me, wanted) in [("[::1]:81", "[::]:81"), ("kv-1.example:82", "0.0.0.0:82"), ("127.0.0.9:83", "0.0.0.0:83")] {
        assert_eq!(resolved(&[("SOCKET_ADDRESS", me)]).listen, wanted.parse().unwrap(), "{me}");
    }
    let given = resolved(&[("LISTEN_ADDRESS", "127.0.0.1:9")]);
    assert_eq!(given.listen, "127.0.0.1:9".parse().unwrap());
}

#[test]
fn shard_counts() {
    for (view, shards) in [(SIX, "1"), (SIX, "2"), (SIX, "3"), ("", "1")] {
        let config = resolved(&[("VIEW", view), ("SHARD_COUNT", shards)]);
        assert_eq!((config.shard_count.to_string().as_str(), config.shard_count_given), (shards, true));
    }
    for (view, shards) in [(SIX, "4"), (SIX, "4294967295"), ("", "2")] {
        let error = Config::resolve(&args(&[("VIEW", view), ("SHARD_COUNT", shards)])).err().unwrap();
        assert_eq!(error.to_string(), NOT_ENOUGH_NODES);
    }
}

#[test]
fn form_without_names_others_of_the_view() {
    let config = resolved(&[("VIEW", SIX), ("FORM_WITHOUT", "10.10.0.4:8090")]);
    assert_eq!(names(&config.form_without), ["10.10.0.4:8090"]);
}

#[test]
fn what_is_wrong_is_named_on_one_line() {
    let bad = [
        ("SOCKET_ADDRESS", ""),
        ("SOCKET_ADDRESS", "10.10.0.2"),
        ("SOCKET_ADDRESS", "http://10.10.0.2:8090"),
        ("VIEW", "10.10.0.2:8090,,10.10.0.3:8090"),
        ("VIEW", "x"),
        ("SHARD_COUNT", "0"),
        ("SHARD_COUNT", "-1"),
        ("SHARD_COUNT", "x"),
        ("SHARD_COUNT", "1180591620717411303424"),
        ("LISTEN_ADDRESS", "localhost"),
        ("FORM_WITHOUT", "10.10.0.9:8090"),
        ("FORM_WITHOUT", ME),
        ("FSYNC", "sometimes"),
        ("FSYNC_INTERVAL", "0s"),
        ("LOG_LEVEL", "kvnode=loud"),
        ("LOG_FORMAT", "xml"),
    ];
    for (name, value) in bad {
        let line =
            Config::resolve(&args(&[(name, value)])).err().unwrap_or_else(|| panic!("{name}={value}")).to_string();
        assert!(line.starts_with(name) && line.contains("a good value is") && !line.contains('\n'), "{line}");
    }
}

#[test]
fn flags_and_help() {
    let parsed = Args::try_parse_from(["kvnode", "--socket-address", ME, "--shard-count", "-1"]).unwrap();
    assert!(Config::resolve(&parsed).err().unwrap().to_string().starts_with("SHARD_COUNT"));
    <Args as clap::CommandFactory>::command().debug_assert();
}
