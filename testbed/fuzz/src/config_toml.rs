//! Any text as a configuration: mistakes are told with their place, and what is valid reads back
//! the same from what is shown of it.

use std::path::Path;

use shadowvm::config::Config;

/// The text of a file.
pub fn target(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let file = Path::new("fuzz.toml");
    match Config::parse(text, file) {
        Ok(config) => {
            let shown = config.to_toml();
            let again = Config::parse(&shown, file);
            assert_eq!(again.as_ref().ok(), Some(&config), "shown as:\n{shown}\n{again:?}");
            assert!(config.needs_restart(&config).is_empty());
            let engine = config.engine();
            assert!(!engine.addresses.is_empty() && !engine.ports.is_empty());
            assert!(engine.hold_soft <= engine.hold_hard);
            true
        }
        Err(problems) => {
            assert!(!problems.list.is_empty(), "a refusal has a reason");
            let lines = text.lines().count() + 1;
            for problem in &problems.list {
                assert!(problem.line.is_none_or(|line| (1..=lines).contains(&line)), "{problem:?}");
            }
            assert!(problems.to_string().contains("fuzz.toml"));
            // It was TOML at least.
            problems.list.iter().any(|problem| !problem.key.is_empty())
        }
    }
}

/// The example, a file with everything in it, and one with several mistakes.
pub fn seeds() -> Vec<Vec<u8>> {
    let base = "[links]\nclient = \"c0\"\na = \"a0\"\nb = \"b0\"\n[service]\n\
        addressing = \"clone\"\naddress = [\"192.0.2.10\", \"2001:db8::1\"]\nports = [80, 443]\n\
        [[server]]\nname = \"one\"\nrole = \"backup\"\n[[server]]\nname = \"two\"\n\
        role = \"primary\"\n";
    let full = format!(
        "{base}[compare]\nhold_soft = \"1ms\"\nhold_hard = \"2s\"\non_lag = \"strict\"\n\
         http_defaults = false\n[[compare.rule]]\nprotocol = \"http\"\nheader = \"X-Id\"\n\
         action = \"mask\"\n[sync]\nbackend = \"exec\"\ncommand = [\"/bin/s\", \"a\\\"b\"]\n\
         deadline = \"1s\"\nmin_gap = \"1m\"\n[failover]\nfence = \"required\"\n\
         fence_command = [\"/bin/true\"]\nprobe_address = \"192.0.2.3\"\nflap_max = 0\n[limits]\n\
         flows_max = 9\nhold_bytes_max = 123456789\n[capture]\nrecord = \"x\"\n[run]\nuid = 7\n\
         [log]\nformat = \"json\"\nlevel = \"trace\"\nevents = \"e\"\n[gateway]\n\
         mode = \"observe\"\n"
    );
    let wrong = base.replace("c0", "a0").replace("80, 443", "80, 80, 99999").replace("two", "t wo");
    [base, &full, &wrong, Config::example()].map(|text| text.as_bytes().to_vec()).into()
}
