//! Broken files as a table: what is written, and what must be said about it.

use super::*;

const BASE: &str = "[links]\nclient = \"c0\"\na = \"a0\"\nb = \"b0\"\n[service]\n\
    addressing = \"clone\"\naddress = \"192.0.2.10\"\nports = [80]\n[[server]]\nname = \"one\"\n\
    role = \"primary\"\n[[server]]\nname = \"two\"\nrole = \"backup\"\n";

fn parse(text: &str) -> Result<Config, Problems> {
    Config::parse(text, Path::new("test.toml"))
}

#[test]
fn the_smallest_file_is_valid_and_has_the_defaults() {
    let config = parse(BASE).expect("it is valid");
    assert_eq!(config.mode, Mode::Protect);
    assert_eq!(config.socket, Path::new(DEFAULT_SOCKET));
    assert_eq!(config.state_file, Path::new(DEFAULT_STATE_FILE));
    assert_eq!(config.server("two"), Some(LegId::B));
    assert_eq!(config.server("three"), None);
    let (engine, defaults) = (config.engine(), EngineConfig::default());
    assert_eq!(engine.server_names, ["one", "two"]);
    assert_eq!(engine.rules, defaults.rules);
    assert_eq!(engine.hold_hard, defaults.hold_hard);
    assert_eq!(engine.sync_scope, None);
    assert_eq!(engine.flows_max, defaults.flows_max);
}

#[test]
fn the_example_is_valid_and_says_the_defaults() {
    let example = parse(Config::example()).expect("the example is valid");
    let bare = BASE.replace("c0", "eth0").replace("a0", "eth1").replace("b0", "eth2");
    let bare = bare.replace("\"one\"", "\"a\"").replace("\"two\"", "\"b\"");
    assert_eq!(example, parse(&bare).expect("it is valid"));
}

#[test]
fn what_is_shown_reads_back_to_the_same() {
    let full = BASE.replace("[80]", "[80, 2121]");
    let full = format!(
        "{full}[compare]\nhttp_defaults = false\nftp_defaults = false\n\
         ftp_ports = [2121, 21]\nopaque = false\nopaque_ports = [80]\n\
         on_lag = \"strict\"\nudp = \"strict\"\n\
         [[compare.rule]]\n\
         protocol = \"http\"\nheader = \"X-Id\"\naction = \"mask\"\n[[compare.rule]]\n\
         protocol = \"http\"\nheader = \"Set-Cookie\"\nname = \"SID\"\naction = \"map\"\n\
         synced = true\n\
         [[compare.rule]]\nprotocol = \"http\"\nheader = \"X-Csrf\"\naction = \"map\"\n\
         [sync]\nbackend = \"exec\"\n\
         command = [\"/bin/sync me\", \"a\\\"b\"]\ndeadline = \"1s\"\n[failover]\n\
         reprotect = \"idle\"\nfence = \"required\"\nfence_command = [\"/bin/true\"]\n\
         probe_address = \"192.0.2.3\"\n\
         [limits]\nhold_bytes_max = 123456789\n[capture]\nrecord = \"x.pcapng\"\n\
         [evidence]\nwrite = false\ndir = \"/e\"\nfiles_max = 3\nbytes_max = \"8MiB\"\n\
         age_max = \"2h\"\nring_bytes = \"1MiB\"\nring_time = \"5s\"\n[run]\nuid = 7\n\
         [security]\nsandbox = false\n\
         [log]\nformat = \"json\"\nlevel = \"trace\"\nevents = \"e\"\n[gateway]\n\
         mode = \"observe\"\n"
    );
    for text in [BASE, &full, Config::example()] {
        let config = parse(text).expect("it is valid");
        assert_eq!(parse(&config.to_toml()).expect("it is valid"), config);
    }
    let config = parse(&full).expect("it is valid");
    assert_eq!(config.run_as, Some(RunAs::Ids { uid: 7, gid: 7 }));
    assert!(!config.is_sandboxed && parse(BASE).expect("it is valid").is_sandboxed);
    let rules = Rules { ftp_ports: vec![2121, 21], ..Rules::headers(["x-id"]) };
    let maps = [Rule::map("set-cookie", Some("SID")).synced(), Rule::map("x-csrf", None)];
    let rules = maps.into_iter().fold(rules, Rules::and);
    assert_eq!(config.engine().rules, rules);
    assert!(!config.engine().has_opaque && parse(BASE).expect("it is valid").engine().has_opaque);
    assert_eq!(config.engine().opaque_ports, [80]);
    assert_eq!(config.engine().sync_scope, Some(SyncScope::Content));
}

#[test]
fn the_second_server_may_be_primary_and_two_families_may_be_served() {
    let swapped = BASE.replace("primary", "x").replace("backup", "primary").replace("x", "backup");
    let both = swapped.replace("\"192.0.2.10\"", "[\"192.0.2.10\", \"2001:db8::10\"]");
    let config = parse(&both).expect("it is valid");
    assert_eq!(config.engine().first_primary, LegId::B);
    assert_eq!(config.engine().addresses.len(), 2);
}

#[test]
fn a_service_array_of_one_is_a_service() {
    assert!(parse(&BASE.replace("[service]", "[[service]]")).is_ok());
}

/// One mistake: what to replace in (or, with an empty first part, to append to) the base file, the
/// line it is reported at, its key, and words that the message must have.
type Case = (&'static str, &'static str, Option<usize>, &'static str, &'static str);

#[rustfmt::skip]
const BROKEN: &[Case] = &[
    ("client = \"c0\"\n", "", Some(1), "links.client", "missing"),
    ("\"c0\"", "\"a0\"", Some(3), "links.a", "same interface"),
    ("\"c0\"", "\"much-too-long-a-name\"", Some(2), "links.client", "not the name of an interface"),
    ("\"c0\"", "3", Some(2), "links.client", "a whole number, expected a string"),
    ("client = ", "cleint = ", Some(2), "links.cleint", "did you mean `client`?"),
    ("\"clone\"", "\"vip\"", None, "network", "missing"),
    ("\"clone\"", "\"clone\"\nsource = \"client\"", Some(7), "service.source", "vip addressing"),
    ("\"two\"", "\"two\"\naddress = \"192.0.2.3\"", Some(14), "server.address", "vip addressing"),
    ("", "[network]\nclient = \"192.0.2.0/24\"\n", Some(15), "network", "vip addressing"),
    ("[80]", "[\"8080:80\"]", Some(8), "service.ports", "whole number"),
    ("\"clone\"", "\"clon\"", Some(6), "service.addressing", "did you mean `clone`?"),
    ("addressing = \"clone\"\n", "", Some(5), "service.addressing", "missing"),
    ("\"192.0.2.10\"", "\"192.0.2.300\"", Some(7), "service.address", "not an IP address"),
    ("\"192.0.2.10\"", "\"192.0.2.10/24\"", Some(7), "service.address", "prefix length"),
    ("\"192.0.2.10\"", "[]", Some(7), "service.address", "empty"),
    ("\"192.0.2.10\"", "\"224.0.0.1\"", Some(7), "service.address", "cannot be"),
    ("\"192.0.2.10\"", "\"::ffff:192.0.2.1\"", Some(7), "service.address", "cannot be"),
    ("\"192.0.2.10\"", "[\"192.0.2.1\", \"192.0.2.2\"]", Some(7), "service.address", "one family"),
    ("[80]", "[]", Some(8), "service.ports", "no port"),
    ("[80]", "[80, 80]", Some(8), "service.ports", "twice"),
    ("[80]", "[80, 70000]", Some(8), "service.ports", "1 to 65535"),
    ("[80]", "[\"http\", 80]", Some(8), "service.ports", "whole number"),
    ("[80]", "true", Some(8), "service.ports", "expected a list"),
    ("\"two\"", "\"one\"", Some(13), "server.name", "two servers are called `one`"),
    ("\"two\"", "\"t wo\"", Some(13), "server.name", "not a name"),
    ("\"backup\"", "\"primary\"", Some(14), "server.role", "second primary"),
    ("\"backup\"", "\"standby\"", Some(14), "server.role", "`primary`, `backup`"),
    ("role = \"backup\"\n", "", Some(12), "server.role", "missing"),
    ("", "[[server]]\nname = \"c\"\nrole = \"backup\"\n", Some(15), "server", "exactly two"),
    ("", "[[service]]\n", Some(15), "", "service"),
    ("", "[comapre]\n", Some(15), "comapre", "did you mean [compare]?"),
    ("[links]", "ports = [1]\n[links]", Some(1), "ports", "[service]"),
    ("", "[compare]\nhold_sfot = \"1s\"\n", Some(16), "compare.hold_sfot", "`hold_soft`"),
    ("", "[compare]\nmin_gap = \"1s\"\n", Some(16), "compare.min_gap", "belongs to [sync]"),
    ("", "[compare]\nhold_soft = \"30\"\n", Some(16), "compare.hold_soft", "not a time"),
    ("", "[compare]\nhold_soft = 30\n", Some(16), "compare.hold_soft", "with its unit"),
    ("", "[compare]\nhold_soft = \"2h\"\n", Some(16), "compare.hold_soft", "must be 1ms to 1m"),
    ("", "[compare]\nhold_soft = \"1s\"\n", Some(16), "compare.hold_soft", "shorter"),
    ("", "[compare]\non_lag = \"strickt\"\n", Some(16), "compare.on_lag", "`strict`"),
    ("", "[compare]\nudp = \"both\"\n", Some(16), "compare.udp", "`primary-first`"),
    ("", "[compare]\nhttp_defaults = 1\n", Some(16), "compare.http_defaults", "true or false"),
    ("", "[compare]\nftp_defaults = 1\n", Some(16), "compare.ftp_defaults", "true or false"),
    ("", "[compare]\nftp_ports = [21, 21]\n", Some(16), "compare.ftp_ports", "twice"),
    ("", "[compare]\nftp_ports = [2121]\n", Some(16), "compare.ftp_ports", "not a port of the"),
    ("", "[compare]\nftp_ports = [0]\n", Some(16), "compare.ftp_ports", "1 to 65535"),
    ("", "[compare]\nftp_ports = [\"ftp\"]\n", Some(16), "compare.ftp_ports", "whole number"),
    ("", "[compare]\nopaque = \"tls\"\n", Some(16), "compare.opaque", "true or false"),
    ("", "[compare]\nopaque_ports = [443]\n", Some(16), "compare.opaque_ports", "not a port of"),
    ("", "[compare]\nopaque_ports = [80, 80]\n", Some(16), "compare.opaque_ports", "listed twice"),
    ("", "[[compare.rule]]\nprotocol = \"http\"\nheader = \"a b\"\naction = \"mask\"\n",
        Some(17), "compare.rule.header", "header field"),
    ("", "[[compare.rule]]\nprotocol = \"http\"\nheader = \"content-length\"\naction = \"mask\"\n",
        Some(17), "compare.rule.header", "cannot be masked"),
    ("", "[[compare.rule]]\nprotocol = \"http\"\nheader = \"x\"\naction = \"maps\"\n",
        Some(18), "compare.rule.action", "`map`"),
    ("", "[[compare.rule]]\nprotocol = \"http\"\nheader = \"set-cookie\"\naction = \"map\"\n",
        Some(15), "compare.rule.name", "missing"),
    ("", "[[compare.rule]]\nprotocol = \"http\"\nheader = \"x\"\naction = \"mask\"\nname = \"a\"\n",
        Some(19), "compare.rule.name", "all of a header"),
    ("", "[[compare.rule]]\nprotocol = \"http\"\nheader = \"x\"\naction = \"map\"\nname = \"a;\"\n",
        Some(19), "compare.rule.name", "name of a cookie"),
    ("", "[[compare.rule]]\nprotocol = \"http\"\nheader = \"x\"\naction = \"map\"\nname = \"a\"\n\
          [[compare.rule]]\nprotocol = \"http\"\nheader = \"x\"\naction = \"map\"\n",
        Some(22), "compare.rule.header", "two rules"),
    ("", "[[compare.rule]]\nheader = \"x\"\naction = \"mask\"\n",
        Some(15), "compare.rule.protocol", "missing"),
    ("", "[sync]\nbackend = \"exec\"\n", Some(15), "sync.command", "missing"),
    ("", "container = \"/run/b\"\n[sync]\nbackend = \"none\"\n", Some(17), "server.container",
        "no backend copies it"),
    ("", "[sync]\nbackend = \"miror\"\n", Some(16), "sync.backend", "did you mean `mirror`?"),
    ("", "[sync]\nbackend = \"exec\"\ncommand = [\"/x\"]\nexclude = []\n", Some(18), "sync.exclude",
        "only the backend `mirror`"),
    ("", "[sync]\nwatch = true\n", Some(16), "sync.watch", "only the backend `mirror`"),
    ("", "dir = \"/b\"\ndir_command = [\"/x\"]\n[sync]\nbackend = \"none\"\n", Some(16),
        "server.dir_command", "not both"),
    ("", "agent = \"b\"\n", Some(15), "server.agent", "not a host and a port"),
    ("", "agent = \"b:0\"\n", Some(15), "server.agent", "not a host and a port"),
    ("", "agent = \"2001:db8::1:7411\"\n", Some(15), "server.agent", "[2001:db8::10]:7411"),
    ("", "agent = \"b:7411\"\ndir = \"/b\"\n[sync]\nbackend = \"none\"\n", Some(16),
        "server.dir", "given beside `agent`"),
    ("", "agent = \"b:7411\"\ndir_command = [\"/x\"]\n[sync]\nbackend = \"none\"\n", Some(16),
        "server.dir_command", "remove one of the two"),
    ("", "[agent]\nkey = \"/etc/key\"\n", Some(15), "agent", "no server has an agent"),
    ("", "agent = \"b:7411\"\n[agent]\nkey = \"key\"\n", Some(17), "agent.key",
        "not an absolute path"),
    ("", "agent = \"b:7411\"\n[agent]\nlimit = \"1KiB\"\n", Some(17), "agent.limit",
        "64KiB to 1TiB"),
    ("", "agent = \"b:7411\"\n[agent]\nkeys = \"/key\"\n", Some(17), "agent.keys", "`key`"),
    ("", "dir = \"b\"\n[sync]\nbackend = \"none\"\n", Some(15), "server.dir",
        "not an absolute path"),
    ("", "[sync]\ncommand = [\"/bin/true\"]\n", Some(16), "sync.command", "no backend"),
    ("", "[sync]\nbackend = \"exec\"\ncommand = \"/bin/true\"\n", Some(17), "sync.command", "list"),
    ("", "[sync]\nbackend = \"exec\"\ncommand = [\"sync.sh\"]\n", Some(17), "sync.command",
        "absolute path"),
    ("", "[sync]\nbackend = \"exec\"\ncommand = []\n", Some(17), "sync.command", "empty"),
    ("", "[sync]\ndeadline = \"40s\"\n", Some(16), "sync.deadline", "shorter than deadline"),
    ("", "[failover]\nreprotect = \"yes\"\n", Some(16), "failover.reprotect", "`idle`"),
    ("", "[failover]\nfence = \"required\"\n", Some(16), "failover.fence_command", "missing"),
    ("", "[failover]\nfence_command = [\"/x\"]\n", Some(16), "failover.fence_command", "none"),
    ("", "[failover]\nflap_max = -1\n", Some(16), "failover.flap_max", "0 to 1000"),
    ("", "[failover]\nprobe_address = \"192.0.2.10\"\n", Some(16), "failover.probe_address",
        "address of the service"),
    ("", "[failover]\nprobe_address = \"fd00::1\"\n", Some(16), "failover.probe_address", "family"),
    ("", "[limits]\nflows_max = 0\n", Some(16), "limits.flows_max", "1 to 1048576"),
    ("", "[limits]\nhold_bytes_max = \"1GB\"\n", Some(16), "limits.hold_bytes_max", "not a size"),
    ("", "[evidence]\ndir = \"here\"\n", Some(16), "evidence.dir", "an absolute path"),
    ("", "[evidence]\nring_bytes = \"65MiB\"\n", Some(16), "evidence.bytes_max", "at least 260MiB"),
    ("", "[evidence]\nfile_max = 1\n", Some(16), "evidence.file_max", "`files_max`"),
    ("", "[limits]\nhold_bytes_max = 5\n", Some(16), "limits.hold_bytes_max", "1MiB to 1TiB"),
    ("", "[admin]\nhttp = \"127.0.0.1:1\"\n", Some(16), "admin.http", "not supported by this"),
    ("", "[gateway]\nworkers = 0\n", Some(16), "gateway.workers", "not supported by this"),
    ("", "[state]\nfile = \"\"\n", Some(16), "state.file", "not a path"),
    ("", "[run]\nuser = \"x\"\nuid = 1\n", Some(17), "run.uid", "not both"),
    ("", "[run]\ngid = 1\n", Some(16), "run.uid", "missing"),
    ("", "[log]\nlevel = \"loud\"\n", Some(16), "log.level", "`info`"),
    ("\"c0\"", "\"c0", Some(2), "", "string"),
    ("a = \"a0\"", "client = \"a0\"", Some(3), "", "duplicate key"),
];

const VIP: &str = "[links]\nclient = \"c0\"\na = \"a0\"\nb = \"b0\"\n[service]\n\
    addressing = \"vip\"\naddress = [\"192.0.2.10\", \"2001:db8::10\", \"192.0.2.11\"]\n\
    ports = [443, \"8080:80\"]\nsource = \"client\"\n\
    [[server]]\nname = \"one\"\nrole = \"primary\"\n\
    address = [\"10.1.0.10\", \"10.1.0.11\", \"fd00:1::10\"]\n\
    [[server]]\nname = \"two\"\nrole = \"backup\"\n\
    address = [\"fd00:2::10\", \"10.2.0.10\", \"10.2.0.11\"]\n\
    [network]\nclient = [\"192.0.2.0/24\", \"2001:db8::/64\"]\nnext_hop = [\"192.0.2.1\"]\n\
    a = [\"10.1.0.1/24\", \"fd00:1::1/64\"]\nb = [\"10.2.0.1/24\", \"fd00:2::1/64\"]\n";

#[test]
fn addresses_of_the_service_are_served_in_the_order_of_their_family() {
    let config = parse(VIP).expect("it is valid");
    let plan = config.engine().vip.expect("vip addressing");
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let served = |service: &str, a: &str, b: &str| crate::engine::Served {
        service: ip(service),
        servers: [ip(a), ip(b)],
    };
    let want = [
        served("192.0.2.10", "10.1.0.10", "10.2.0.10"),
        served("2001:db8::10", "fd00:1::10", "fd00:2::10"),
        served("192.0.2.11", "10.1.0.11", "10.2.0.11"),
    ];
    assert_eq!(plan.served, want);
    assert_eq!(config.service.ports, [443, 8080]);
    assert_eq!(plan.ports, [(8080, 80)]);
    assert_eq!(plan.own_of(LegId::B, ip("10.2.0.10")), Some(ip("10.2.0.1")));
    assert_eq!(plan.next_hop(ip("192.0.2.77")), Some(ip("192.0.2.77")));
    assert_eq!(plan.next_hop(ip("203.0.113.1")), Some(ip("192.0.2.1")));
    assert_eq!(plan.next_hop(ip("2001:db8:9::1")), None);
    assert_eq!(parse(&config.to_toml()).expect("it is valid"), config);
    let by_gateway = VIP.replace("source = \"client\"", "source = \"gateway\"");
    assert_ne!(parse(&by_gateway).expect("it is valid").vip, config.vip);
}

#[rustfmt::skip]
const BROKEN_VIP: &[Case] = &[
    ("\"8080:80\"", "\"8080:443\"", Some(8), "service.ports", "443 is listed twice"),
    ("\"8080:80\"", "\"8080-80\"", Some(8), "service.ports", "8080:80"),
    ("\"8080:80\"", "\"0:80\"", Some(8), "service.ports", "1 to 65535"),
    ("source = \"client\"", "source = \"server\"", Some(9), "service.source", "`gateway`"),
    (", \"fd00:1::10\"]", "]", Some(13), "server.address", "0 IPv6 addresses"),
    ("\"10.1.0.11\", ", "", Some(13), "server.address", "1 IPv4 addresses, the service has 2"),
    ("\"10.1.0.10\"", "\"10.2.0.99\"", Some(13), "server.address", "in no network"),
    ("address = [\"fd00:2::10\", \"10.2.0.10\", \"10.2.0.11\"]\n", "", Some(14), "server.address",
        "missing"),
    ("client = [\"192.0.2.0/24\", \"2001:db8::/64\"]", "client = \"192.0.2.0/24\"", Some(19),
        "network.client", "no way to IPv6"),
    ("\"192.0.2.0/24\"", "\"192.0.2.0\"", Some(19), "network.client", "prefix length"),
    ("\"192.0.2.0/24\"", "\"192.0.2.0/33\"", Some(19), "network.client", "not a prefix length"),
    ("[\"192.0.2.1\"]", "[\"198.51.100.1\"]", Some(20), "network.next_hop", "in no network"),
    ("[\"192.0.2.1\"]", "[\"192.0.2.1\", \"192.0.2.2\"]", Some(20), "network.next_hop",
        "one family"),
    ("[\"192.0.2.1\"]", "[\"192.0.2.10\"]", Some(20), "network.next_hop", "the service too"),
    ("a = [\"10.1.0.1/24\", ", "a = [", Some(21), "network.a", "no IPv4 address"),
    ("a = [\"10.1.0.1/24\", \"fd00:1::1/64\"]\n", "", Some(18), "network.a", "missing"),
    ("\"10.1.0.1/24\"", "\"10.1.0.10/24\"", Some(21), "network.a", "first server too"),
    ("\"10.1.0.1/24\"", "\"10.1.0.0/24\"", Some(21), "network.a", "not a host"),
    ("\"fd00:1::1/64\"", "\"fd00:1::/64\"", Some(21), "network.a", "not a host"),
    ("\"10.2.0.10\"", "\"10.1.0.10\"", Some(17), "server.address", "first server too"),
    ("\"10.1.0.1/24\"", "\"10.1.0.1/24\", \"10.1.0.2/24\"", Some(21), "network.a", "two IPv4"),
    ("\"192.0.2.0/24\"", "\"192.0.2.0/24\", \"10.0.0.0/8\"", Some(21), "network.a",
        "past the gateway"),
    ("", "[failover]\nprobe_address = \"192.0.2.9\"\n", Some(24), "failover.probe_address",
        "clone addressing"),
];

#[test]
fn contradictions_of_networks_are_found() {
    for &(from, to, line, key, words) in BROKEN_VIP {
        let text = match from {
            "" => format!("{VIP}{to}"),
            _ => VIP.replacen(from, to, 1),
        };
        assert_ne!(text, VIP, "{from:?} is not in the file");
        let problems = parse(&text).expect_err(to);
        let shown = problems.to_string();
        let found = problems.list.iter().any(|p| p.line == line && p.key == key);
        assert!(found, "no problem at line {line:?}, key {key:?}, in:\n{shown}");
        assert!(shown.contains(words), "{words:?} is not in:\n{shown}");
    }
    let apart = VIP.replace("\"192.0.2.0/24\"", "\"192.0.2.0/24\", \"10.0.0.0/8\"");
    let apart = apart.replace("source = \"client\"", "source = \"gateway\"");
    assert!(parse(&apart).is_ok(), "the gateway's own address comes back");
}

#[test]
fn each_broken_file_is_refused_with_its_line_and_reason() {
    for &(from, to, line, key, words) in BROKEN {
        let text = if from.is_empty() {
            format!("{BASE}{to}")
        } else {
            assert!(BASE.contains(from), "{from:?} is not in the base file");
            BASE.replacen(from, to, 1)
        };
        let problems = parse(&text).expect_err(to);
        let shown = problems.to_string();
        let found = problems.list.iter().any(|p| p.line == line && p.key == key);
        assert!(found, "no problem at line {line:?}, key {key:?}, in:\n{shown}");
        assert!(shown.contains(words), "{words:?} is not in:\n{shown}");
        let first = problems.list.first().map(|p| p.line);
        let is_follow_up = problems.list.len() > 1;
        assert!(!is_follow_up || first <= Some(line), "noise before the mistake:\n{shown}");
    }
}

/// The base file with a directory for each server.
fn with_trees() -> String {
    BASE.replace("\"primary\"", "\"primary\"\ndir = \"/srv/a\"")
        .replace("\"backup\"", "\"backup\"\ndir_command = [\"/usr/bin/ssh\", \"b\"]")
}

#[test]
fn a_mirror_is_read_and_shown() {
    let text = format!(
        "{}[sync]\nbackend = \"mirror\"\nexclude = [\"var/log\"]\ncompare = \"content\"\n\
         fsync = true\nwatch = false\n",
        with_trees()
    );
    let config = parse(&text).expect("it is valid");
    assert_eq!(parse(&config.to_toml()).expect("it is valid"), config);
    assert_eq!(config.servers[0].tree, Some(Tree::Dir("/srv/a".into())));
    let command = ["/usr/bin/ssh", "b"].map(String::from).to_vec();
    assert_eq!(config.servers[1].tree, Some(Tree::Command(command)));
    let Some(Backend::Mirror(mirror)) = &config.sync.backend else { panic!("no mirror") };
    assert_eq!(mirror.exclude, ["var/log"]);
    assert!(mirror.by_content && mirror.is_durable && !mirror.is_watching);
    assert_eq!(config.engine().sync_scope, Some(SyncScope::Content));
}

#[test]
fn agents_are_read_and_shown_and_serve_the_mirror_or_are_evidence_alone() {
    let servers =
        with_trees().replace("dir_command = [\"/usr/bin/ssh\", \"b\"]", "agent = \"b:1\"");
    let more = "[agent]\nkey = \"/key\"\nlimit = \"50MiB\"\n[sync]\nbackend = \"mirror\"\n";
    let config = parse(&format!("{servers}{more}")).expect("it is valid");
    assert_eq!(parse(&config.to_toml()).expect("it is valid"), config);
    assert_eq!((config.servers[1].agent.as_deref(), &config.servers[1].tree), (Some("b:1"), &None));
    assert_eq!((config.agent.key.to_str(), config.agent.limit), (Some("/key"), Some(50 << 20)));
    // Without a backend it only tells how the service is.
    let alone = BASE.replace("\"backup\"", "\"backup\"\nagent = \"[::1]:7411\"");
    let config = parse(&alone).expect("it is valid");
    assert_eq!(config.agent.key.to_str(), Some("/etc/shadowvm/agent.key"));
    assert_eq!(parse(&config.to_toml()).expect("it is valid"), config);
    let sync = "[sync]\nbackend = \"container\"\n";
    let wrong = parse(&format!("{alone}{sync}")).expect_err("the keeper sees it");
    assert!(wrong.to_string().contains("sees these servers itself"), "{wrong}");
}

#[test]
fn a_mirror_needs_two_directories_apart_from_each_other() {
    let trees = with_trees();
    for (from, to, words) in [
        ("dir = \"/srv/a\"\n", "", "the server `one` has no directory"),
        ("dir_command = [\"/usr/bin/ssh\", \"b\"]\n", "", "the server `two` has no directory"),
        ("dir_command = [\"/usr/bin/ssh\", \"b\"]", "dir = \"/srv/a/b\"", "are not apart"),
    ] {
        assert!(trees.contains(from), "{from:?}");
        let text = format!("{}[sync]\nbackend = \"mirror\"\n", trees.replace(from, to));
        let problems = parse(&text).expect_err(words);
        assert_eq!(problems.list.len(), 1, "{problems}");
        let line = text.lines().position(|line| line.starts_with("backend")).map(|at| at + 1);
        assert_eq!((problems.list[0].line, &*problems.list[0].key), (line, "sync.backend"));
        assert!(problems.to_string().contains(words), "{problems}");
    }
    for (exclude, words) in [("/etc", "below"), ("a/../b", "below"), ("", "below"), ("a/", "below")]
    {
        let sync = format!("[sync]\nbackend = \"mirror\"\nexclude = [\"{exclude}\"]\n");
        let problems = parse(&format!("{trees}{sync}")).expect_err(exclude);
        assert!(problems.to_string().contains(words), "{problems}");
    }
    let problems = parse(&trees).expect_err("nobody mirrors them");
    assert!(problems.to_string().contains("no backend mirrors it"), "{problems}");
}

#[test]
fn containers_are_read_and_shown() {
    let servers = BASE
        .replace("\"primary\"", "\"primary\"\ncontainer = \"/run/a.pid\"")
        .replace("\"backup\"", "\"backup\"\ncontainer = \"/run/b.pid\"");
    let section = "[sync]\nbackend = \"container\"\n[sync.container]\ncriu = \"/opt/criu\"\n";
    let config = parse(&format!("{servers}{section}")).expect("it is valid");
    assert_eq!(parse(&config.to_toml()).expect("it is valid"), config);
    let Some(Backend::Container(containers)) = &config.sync.backend else { panic!("none") };
    assert_eq!(containers.criu, "/opt/criu");
    assert_eq!(config.servers[1].container, Some(PathBuf::from("/run/b.pid")));
    assert_eq!(config.engine().sync_scope, Some(SyncScope::Machine));
    for (from, to, words) in [
        ("container = \"/run/b.pid\"\n", "", "the server `two` has no container"),
        ("b.pid", "a.pid", "both servers have the container"),
        ("\"/run/b.pid\"", "\"b.pid\"", "not an absolute path"),
        ("\"/opt/criu\"", "\"criu\"", "not an absolute path"),
        ("\"container\"\n[", "\"none\"\n[", "only the backend `container` has this section"),
    ] {
        let text = format!("{servers}{section}").replace(from, to);
        let problems = parse(&text).expect_err(words);
        assert!(problems.to_string().contains(words), "{problems}");
    }
}

#[test]
fn containers_have_a_mirror_beside_them_where_both_servers_have_a_directory() {
    let servers = BASE
        .replace("\"primary\"", "\"primary\"\ncontainer = \"/run/a.pid\"\ndir = \"/srv/a\"")
        .replace("\"backup\"", "\"backup\"\ncontainer = \"/run/b.pid\"\ndir = \"/srv/b\"");
    let sync = "[sync]\nbackend = \"container\"\nexclude = [\"log\"]\ncompare = \"content\"\n\
                watch = false\nfsync = true\ntimeout = \"9s\"\n";
    let config = parse(&format!("{servers}{sync}")).expect("it is valid");
    assert_eq!(parse(&config.to_toml()).expect("it is valid"), config);
    let mirror = MirrorBackend {
        exclude: vec!["log".into()],
        is_watching: false,
        by_content: true,
        is_durable: true,
        timeout: Duration::from_secs(9),
    };
    assert_eq!(config.sync.mirror(), Some(&mirror));
    assert_eq!(config.engine().sync_scope, Some(SyncScope::Machine));
    let only = "the other one has";
    for (from, to, words) in [
        ("dir = \"/srv/a\"\n", "", format!("the server `one` has no directory, but {only}")),
        ("dir = \"/srv/b\"\n", "", format!("the server `two` has no directory, but {only}")),
        ("/srv/b", "/srv/a/b", "are not apart".into()),
        ("/srv/b", "/run/shadowvm", "checkpoints, in /run/shadowvm/containers,".into()),
    ] {
        assert!(servers.contains(from), "{from:?}");
        let text = format!("{}{sync}", servers.replace(from, to));
        let problems = parse(&text).expect_err(&words);
        assert_eq!(problems.list.len(), 1, "{problems}");
        assert!(problems.to_string().contains(&words), "{problems}");
    }
    // Without any directory there is nothing to mirror, and its keys say nothing.
    let servers = servers.replace("dir = \"/srv/a\"\n", "").replace("dir = \"/srv/b\"\n", "");
    let problems = parse(&format!("{servers}{sync}")).expect_err("keys of a mirror");
    assert_eq!(problems.list.len(), 4, "{problems}");
    assert!(problems.to_string().contains("no server has a directory"), "{problems}");
    let config = parse(&format!("{servers}[sync]\nbackend = \"container\"\n"));
    assert_eq!(config.expect("it is valid").sync.mirror(), None);
}

/// The base file with guests as servers.
fn with_guests(section: &str) -> String {
    let links = BASE.replace("\"a0\"", "\"unix:/run/a\"").replace("\"b0\"", "\"unix:/run/b\"");
    format!("{links}[sync]\nbackend = \"qemu\"\n[sync.qemu]\n{section}")
}

#[test]
fn guests_are_read_and_shown() {
    let section = "memory = \"128MiB\"\nkernel = \"/k\"\ninitrd = \"/i\"\nappend = \"quiet\"\n\
                   accel = [\"tcg\"]\nargs = [\"-serial\", \"file:{dir}/{name}.log\"]\n\
                   dir = \"/run/g\"\ndowntime = \"7ms\"\n";
    let config = parse(&with_guests(section)).expect("it is valid");
    assert_eq!(parse(&config.to_toml()).expect("it is valid"), config);
    let Some(Backend::Qemu(guests)) = &config.sync.backend else { panic!("no guests") };
    assert_eq!((guests.memory, guests.cpus), (128 << 20, 1));
    assert_eq!(guests.accel, ["tcg"]);
    assert_eq!(guests.copy, MemoryCopy::Live);
    let engine = config.engine();
    assert_eq!(engine.sync_scope, Some(SyncScope::Machine));
    assert_eq!(engine.sync_deadline, Duration::from_secs(1), "a machine is more than a file");
    assert_eq!(Links::guest_socket(&config.links.a), Some(Path::new("/run/a")));
    assert_eq!(Links::guest_socket(&config.links.client), None);
}

#[test]
fn guests_whose_memory_is_files_say_where() {
    for (more, dir) in [("", "/dev/shm/shadowvm"), ("memory_dir = \"/ram/g\"\n", "/ram/g")] {
        let config = parse(&with_guests(&format!("kernel = \"/k\"\ncopy = \"shared\"\n{more}")));
        let config = config.expect("it is valid");
        assert_eq!(parse(&config.to_toml()).expect("it is valid"), config);
        let Some(Backend::Qemu(guests)) = &config.sync.backend else { panic!("no guests") };
        assert_eq!(guests.copy, MemoryCopy::Shared(dir.into()));
    }
}

#[test]
fn guests_and_their_links_belong_together() {
    let whole = with_guests("kernel = \"/k\"\n");
    for (from, to, key, words) in [
        ("\"unix:/run/a\"", "\"a0\"", "links.a", "are guests of QEMU"),
        ("\"unix:/run/a\"", "\"unix:run/a\"", "links.a", "an absolute path"),
        ("\"unix:/run/a\"", "\"unix:/run/b\"", "links.b", "the same interface"),
        ("\"c0\"", "\"unix:/run/c\"", "links.client", "the link of a guest"),
        ("kernel = \"/k\"\n", "", "sync.qemu.kernel", "missing"),
        (
            "kernel = \"/k\"\n",
            "append = \"x\"\nargs = [\"-x\"]\n",
            "sync.qemu.append",
            "to a kernel",
        ),
        ("\"/k\"", "\"k\"", "sync.qemu.kernel", "not an absolute path"),
        ("[sync.qemu]\nkernel = \"/k\"\n", "", "sync.qemu", "missing"),
        ("\"/k\"\n", "\"/k\"\nmac = \"01:00:00:00:00:10\"\n", "sync.qemu.mac", "of one host"),
        ("\"/k\"\n", "\"/k\"\nmemory = 99999999\n", "sync.qemu.memory", "whole MiB"),
        ("\"/k\"\n", "\"/k\"\naccel = []\n", "sync.qemu.accel", "empty"),
        ("\"/k\"\n", "\"/k\"\ncopy = \"moved\"\n", "sync.qemu.copy", "moved"),
        ("\"/k\"\n", "\"/k\"\nmemory_dir = \"/m\"\n", "sync.qemu.memory_dir", "only shared"),
        (
            "\"/k\"\n",
            "\"/k\"\ncopy = \"shared\"\nmemory_dir = \"/a,b\"\n",
            "sync.qemu.memory_dir",
            "a comma",
        ),
        (
            "\"/k\"\n",
            "\"/k\"\ncopy = \"shared\"\nmemory_dir = \"m\"\n",
            "sync.qemu.memory_dir",
            "not an absolute path",
        ),
        ("\"qemu\"\n[sync.qemu]", "\"none\"\n[sync.qemu]", "sync.qemu", "only the backend"),
    ] {
        let problems = parse(&whole.replacen(from, to, 1)).expect_err(to);
        let found = problems.list.iter().find(|p| p.key == key && p.reason.contains(words));
        assert!(found.is_some(), "{key}, {words}: {problems}");
    }
    let alone = BASE.replace("\"a0\"", "\"unix:/run/a\"");
    let problems = parse(&alone).expect_err("nobody starts guests");
    assert!(problems.to_string().contains("nobody starts guests"), "{problems}");
}

#[test]
fn a_mistake_is_reported_once() {
    for &(from, to, ..) in BROKEN {
        if from.is_empty() && !to.starts_with("[[service]]") && !to.starts_with("[[server]]") {
            let problems = parse(&format!("{BASE}{to}")).expect_err(to);
            assert_eq!(problems.list.len(), 1, "{problems}");
        }
    }
}

#[test]
fn all_mistakes_come_at_once_in_the_order_of_their_lines() {
    let text = "[links]\nclient = 1\n[service]\naddressing = \"vipp\"\nports = [0]\n[sink]\n";
    let problems = parse(text).expect_err("it is broken");
    let keys: Vec<&str> = problems.list.iter().map(|p| p.key.as_str()).collect();
    let want = [
        "links.a",
        "links.b",
        "links.client",
        "service.address",
        "service.addressing",
        "service.ports",
        "sink",
        "server",
    ];
    assert_eq!(keys, want, "{problems}");
}

#[test]
fn an_empty_file_names_what_is_missing() {
    let problems = parse("").expect_err("it is empty");
    let keys: Vec<&str> = problems.list.iter().map(|p| p.key.as_str()).collect();
    assert_eq!(keys, ["links", "server", "service"]);
}

#[test]
fn only_what_cannot_change_needs_a_restart() {
    let old = parse(BASE).expect("it is valid");
    let slow = parse(&format!("{BASE}[compare]\nhold_hard = \"300ms\"\n")).expect("it is valid");
    assert!(old.needs_restart(&slow).is_empty());
    let moved = parse(&BASE.replace("c0", "c1")).expect("it is valid");
    assert_eq!(old.needs_restart(&moved), ["links"]);
}

#[test]
fn an_unreadable_file_says_what_to_do() {
    let error = Config::load(Path::new("/nonexistent/x.toml")).expect_err("it is not there");
    assert!(error.to_string().contains("shadowvm config init"), "{error}");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(cut in 0usize..2000, junk in "[\\[\\]=\"a-z0-9\n.é,{}]{0,40}") {
        let text: String = Config::example().chars().take(cut).chain(junk.chars()).collect();
        if let Err(problems) = parse(&text) {
            proptest::prop_assert!(!problems.to_string().is_empty());
        }
    }
}
