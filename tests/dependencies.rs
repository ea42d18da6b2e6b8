//! `deny.toml` held without cargo-deny: licences, sources and bans of everything that this build is made of.

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The texts of the list that begins with `name = [` in deny.toml; of tables in it, the value of `field`.
fn list(name: &str, field: Option<&str>) -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("deny.toml")).unwrap();
    let start = text.find(&format!("\n{name} = [")).unwrap_or_else(|| panic!("deny.toml has no {name}"));
    let lines = text[start + 1..].lines();
    let mut items = BTreeSet::new();
    for line in lines.take_while(|line| *line != "]").filter(|line| !line.trim_start().starts_with('#')) {
        let mark = field.map_or("\"".to_string(), |field| format!("{field} = \""));
        if let Some((_, rest)) = line.split_once(&mark) {
            items.insert(rest.split('"').next().unwrap_or_default().to_string());
        }
        if line.ends_with(']') {
            break;
        }
    }
    items
}

/// Name, licence and source of each package that is built for this machine.
fn packages() -> Vec<[String; 3]> {
    let version = Command::new(env!("CARGO")).args(["-vV"]).output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform", host])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let used: BTreeSet<&str> =
        metadata["resolve"]["nodes"].as_array().unwrap().iter().filter_map(|n| n["id"].as_str()).collect();
    let all = metadata["packages"].as_array().unwrap();
    let used = all.iter().filter(|p| p["id"].as_str().is_some_and(|id| used.contains(id)));
    used.map(|p| ["name", "license", "source"].map(|key| p[key].as_str().unwrap_or_default().to_string())).collect()
}

/// Does an SPDX expression hold with these licences? `AND` binds tighter than `OR`.
fn allowed(expression: &str, licences: &BTreeSet<String>) -> bool {
    let expression = expression.replace(" / ", " OR ").replace('/', " OR ");
    let (mut outer, mut rest) = (expression.clone(), expression.as_str());
    // Parentheses hold no others in practice: each is judged first and takes the place of a licence.
    while let Some((before, after)) = rest.split_once('(') {
        let Some((inner, _)) = after.split_once(')') else { return false };
        let verdict = if allowed(inner, licences) { "yes" } else { "no" };
        outer = outer.replace(&format!("({inner})"), verdict);
        rest = &rest[before.len() + inner.len() + 2..];
    }
    let holds = |licence: &str| licence == "yes" || licences.contains(licence.trim());
    outer.split(" OR ").any(|all| all.split(" AND ").all(holds))
}

#[test]
fn licences_are_on_the_list() {
    let licences = list("allow", None);
    assert!(licences.contains("Apache-2.0"), "{licences:?}");
    let packages = packages();
    assert!(packages.len() > 100, "only {} packages were found", packages.len());
    let refused: Vec<_> = packages.iter().filter(|[_, licence, _]| !allowed(licence, &licences)).collect();
    assert!(refused.is_empty(), "not allowed by deny.toml: {refused:?}");
}

#[test]
fn packages_come_from_the_registry_and_are_not_banned() {
    let registries = list("allow-registry", None);
    let banned = list("deny", Some("crate"));
    assert!(!registries.is_empty() && !banned.is_empty());
    for [name, _, source] in packages() {
        let known = registries.iter().any(|r| source == format!("registry+{r}"));
        assert!(known || (source.is_empty() && name == env!("CARGO_PKG_NAME")), "{name} comes from {source:?}");
        assert!(!banned.contains(&name), "{name} is banned by deny.toml");
    }
}

#[test]
fn expressions_are_read_as_spdx() {
    let licences = BTreeSet::from(["MIT".to_string(), "ISC".to_string()]);
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("", false),
        ("GPL-3.0 OR MIT", true),
        ("MIT/GPL-3.0", true),
        ("GPL-3.0 AND MIT", false),
        ("ISC AND (MIT OR GPL-3.0)", true),
        ("ISC AND (GPL-2.0 OR GPL-3.0)", false),
        ("(MIT OR X) AND ISC", true),
    ] {
        assert_eq!(allowed(expression, &licences), expected, "{expression}");
    }
}
