//! Fragments of the configuration: the files `conf.d/*.toml` beside the configuration file, each with what one owner
//! wants, such as a package or a role of a configuration management. The label of a fragment is the name of its file.
//!
//! At the start and on SIGHUP each fragment replaces what has its label and touches nothing else, as `PUT
//! /v1/config?owner=LABEL` does. What has the label of a file that is gone is removed. A fragment that cannot be applied
//! leaves what has its label as it was, and keeps no other fragment out. Reads the directory; changes are made by others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::future::Future;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::control::config::{Config, ConfigErrors, Source, wrong_id};
use crate::control::desired::change::Change;

/// Name of the directory beside the configuration file.
pub(super) const DIRECTORY: &str = "conf.d";

/// End of the names of fragments. Labels that end so are those of fragments.
const EXTENSION: &str = ".toml";

/// Maximum number of fragments.
const MAX_FILES: usize = 1000;

/// Maximum length of one in bytes.
const MAX_LEN: u64 = 8 << 20;

/// The fragments of a host.
#[derive(Debug, Default)]
pub(super) struct Fragments {
    /// By name of the file: what it wants, or why that is unknown.
    files: BTreeMap<String, Result<Config, String>>,
}

/// A fragment that is to be applied.
pub(super) struct Pending {
    /// Its label.
    pub owner: String,
    /// The change that applies it.
    pub change: Change,
}

/// Directory of the fragments that belong to a configuration file.
pub(super) fn directory(config: &Path) -> PathBuf {
    config.with_file_name(DIRECTORY)
}

impl Fragments {
    /// Reads a directory, in the order of names. There are no fragments if it does not exist. Blocks.
    ///
    /// # Errors
    /// The directory cannot be read, so that it is unknown which fragments there are.
    pub fn read(directory: &Path) -> Result<Fragments, String> {
        let failed = |why: io::Error| format!("{} cannot be read: {why}", directory.display());
        let entries = match fs::read_dir(directory) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(Fragments::default()),
            entries => entries.map_err(failed)?,
        };
        let mut files = BTreeMap::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // Editors and package managers leave others there.
            if !name.ends_with(EXTENSION) || name.starts_with('.') {
                continue;
            }
            if files.len() == MAX_FILES {
                return Err(format!("{} has more than {MAX_FILES} fragments; join some", directory.display()));
            }
            files.insert(name.clone(), wanted(&path, &name));
        }
        Ok(Fragments { files })
    }

    /// Number of fragments.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Names of the fragments that cannot be applied, and why.
    pub fn unreadable(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().filter_map(|(name, wanted)| Some((name.as_str(), wanted.as_ref().err()?.as_str())))
    }

    /// What is to be applied to a configuration: those that are gone first.
    pub fn pending(&self, config: &Value) -> Vec<Pending> {
        let apply = |owner: &String, config| Pending {
            owner: owner.clone(),
            change: Change::ApplyOwned { owner: owner.clone(), config },
        };
        let owners = owners(config);
        let gone = owners.iter().filter(|owner| owner.ends_with(EXTENSION) && !self.files.contains_key(*owner));
        let gone = gone.map(|owner| apply(owner, Config::default()));
        let there = self.files.iter().filter_map(|(owner, wanted)| Some(apply(owner, wanted.as_ref().ok()?.clone())));
        gone.chain(there).collect()
    }
}

/// What a fragment wants.
fn wanted(path: &Path, name: &str) -> Result<Config, String> {
    if let Some(wrong) = wrong_id(name) {
        return Err(format!("the name of the file is the label of what it has, and is {wrong}; rename the file"));
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| {
        // Opening anything else may block, or have effects.
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("not a file"));
        }
        file.take(MAX_LEN + 1).read_to_end(&mut bytes)
    });
    read.map_err(|why| format!("cannot be read: {why}"))?;
    if bytes.len() as u64 > MAX_LEN {
        return Err(format!("longer than {} MiB; split it", MAX_LEN >> 20));
    }
    let text = |errors: ConfigErrors| errors.to_string();
    let source = Source::of(path.display().to_string(), bytes).map_err(text)?;
    let config = source.part().map_err(text)?;
    if source.to_json().map_err(text)?.get("switch").is_some() {
        return Err("[switch] belongs to the configuration file; remove it from the fragment".to_owned());
    }
    Ok(config)
}

/// Labels of a configuration.
fn owners(config: &Value) -> BTreeSet<String> {
    let items = |of: &Value, key: &str| of.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut all: Vec<Value> = ["networks", "uplinks", "vms"].iter().flat_map(|key| items(config, key)).collect();
    all.extend(items(config, "vms").iter().flat_map(|vm| items(vm, "ports")));
    all.iter().filter_map(|item| Some(item.get("owner")?.as_str()?.to_owned())).collect()
}

/// Makes changes of fragments, which may need one another in any order, in rounds for as long as one of them succeeds.
/// Returns the errors of the others, by label.
pub(super) async fn settle<E, F: Future<Output = Result<(), E>>>(
    mut pending: Vec<Pending>,
    mut make: impl FnMut(&Pending) -> F,
) -> Vec<(String, E)> {
    loop {
        let (before, mut errors) = (pending.len(), Vec::new());
        let mut failed = Vec::new();
        for fragment in pending {
            if let Err(error) = make(&fragment).await {
                errors.push((fragment.owner.clone(), error));
                failed.push(fragment);
            }
        }
        if failed.is_empty() || failed.len() == before {
            return errors;
        }
        pending = failed;
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use futures_util::FutureExt;

    use super::*;
    use crate::control::config::parse_toml;

    const NETWORK: &str = "networks = [{ id = \"n\" }]";
    const PORT: &str = "[[vms]]\nid = \"v\"\nports = [{ port_id = \"p\", network_id = \"n\",\n\
                        mac_address = \"02:00:00:00:00:01\", device = { kind = \"tap\", name = \"t\" } }]";

    /// Applies what a directory has to a configuration. Returns the errors.
    fn apply(directory: &Path, config: &mut Config) -> Vec<String> {
        let fragments = Fragments::read(directory).unwrap();
        let pending = fragments.pending(&config.to_sparse());
        let errors = settle(pending, |fragment| ready(fragment.change.to(config).map(|changed| *config = changed)));
        let errors = errors.now_or_never().unwrap();
        let refused = errors.into_iter().map(|(owner, error)| format!("{owner}: {}", error.message));
        fragments.unreadable().map(|(name, why)| format!("{name}: {why}")).chain(refused).collect()
    }

    #[test]
    fn fragments_need_one_another_in_any_order() {
        for (first, second) in [(NETWORK, PORT), (PORT, NETWORK)] {
            let directory = tempfile::tempdir().unwrap();
            let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
            write("a.toml", first);
            write("b.toml", second);
            write(".hidden.toml", "=");
            write("c.toml.dpkg-new", "=");
            let mut config = Config::default();
            assert_eq!(apply(directory.path(), &mut config), [""; 0]);
            assert_eq!((config.networks.len(), config.ports().count()), (1, 1));
            let labels = owners(&config.to_sparse());
            assert_eq!(labels, ["a.toml", "b.toml"].map(str::to_owned).into());
            for name in ["a.toml", "b.toml"] {
                fs::remove_file(directory.path().join(name)).unwrap();
            }
            assert_eq!(apply(directory.path(), &mut config), [""; 0]);
            assert_eq!(config, Config::default(), "both are gone");
        }
    }

    #[test]
    fn a_fragment_that_cannot_be_applied_keeps_no_other_out() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("a.toml", NETWORK);
        write("b.toml", PORT);
        let mut config = Config::default();
        apply(directory.path(), &mut config);
        let before = config.clone();
        for (text, why) in [
            ("networks = 1", "networks"),
            ("[switch]\npoll = \"busy\"", "[switch] belongs to the configuration file"),
            ("networks = [{ id = \"n\" }]", "owner"),
            ("networks = [{ id = \"m\", owner = \"else\" }]", "owner"),
        ] {
            write("b.toml", text);
            write("c.toml", "networks = [{ id = \"c\" }]");
            let mut config = before.clone();
            let errors = apply(directory.path(), &mut config);
            assert!(errors.len() == 1 && errors[0].starts_with("b.toml: ") && errors[0].contains(why), "{errors:?}");
            assert_eq!(config.vms, before.vms, "its own are as they were");
            assert_eq!(config.networks.len(), 2);
        }
        write("b.toml", PORT);
        write("a b.toml", "");
        fs::create_dir(directory.path().join("d.toml")).unwrap();
        let errors = apply(directory.path(), &mut config);
        assert!(errors.iter().any(|error| error.starts_with("d.toml: ")), "{errors:?}");
        assert_eq!(config.vms, before.vms);
    }

    #[test]
    fn what_has_no_label_of_a_fragment_stays() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = parse_toml(
            "networks = [{ id = \"n\" }, { id = \"o\", owner = \"other\" }, { id = \"g\", owner = \"gone.toml\" }]",
            "x",
        )
        .unwrap();
        assert_eq!(apply(&directory.path().join("absent"), &mut config), [""; 0]);
        let ids: Vec<_> = config.networks.iter().map(|network| network.id.as_str()).collect();
        assert_eq!(ids, ["n", "o"]);
    }
}
