//! What the checkout around the current folder is called: its commit, the seed that the commit
//! stands for, and the tree of `src`. It asks `git`, and changes nothing.

use std::process::Command;

/// The commit that failures belong to; the version where there is no checkout.
pub fn commit() -> String {
    let version = || concat!("version ", env!("CARGO_PKG_VERSION")).into();
    ask(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|_| version())
}

/// The seed that the commit stands for: the first 40 bits of its id. Every commit tries seeds that
/// no other has tried, and tries the same ones again when it is asked to.
pub fn seed() -> Result<u64, String> {
    let id = ask(&["rev-parse", "HEAD"]).map_err(|why| {
        format!("--from-commit: there is no commit here ({why}); name the first seed by --from S")
    })?;
    let digits = id.get(..10).unwrap_or_default();
    u64::from_str_radix(digits, 16).map_err(|_| format!("--from-commit: {id:?} is no commit"))
}

/// The id of the tree `src` (`git rev-parse HEAD:src`), if that is what lies there.
pub fn src_tree() -> Result<String, String> {
    let needs = |why: String| format!("a long run is one tree's: {why}");
    let top = ask(&["rev-parse", "--show-toplevel"]).map_err(needs)?;
    let tree = ask(&["-C", &top, "rev-parse", "HEAD:src"]).map_err(needs)?;
    let changes = ask(&["-C", &top, "status", "--porcelain", "--", "src"]).map_err(needs)?;
    match changes.lines().count() {
        0 => Ok(tree),
        n => Err(needs(format!("{n} files of src are not as committed"))),
    }
}

fn ask(args: &[&str]) -> Result<String, String> {
    let output = Command::new("git").args(args).output().map_err(|e| format!("git: {e}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr).lines().next().unwrap_or("git failed").to_owned()),
    }
}
