//! `system.which`: where programs are.
//!
//! In: bare names and this host's `PATH`. Out: the first executable file of each name. Attacker controls: the names.
//! Bounds: `EXEC_WHICH_NAMES_MAX`. Errors: none for a name that is not found; it is left out.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Host, NodeError, blocking, payload};
use crate::base::limits::EXEC_WHICH_NAMES_MAX;

/// Where to look when the environment does not say.
pub(super) const PATH_DEFAULT: &str = "/usr/local/bin:/usr/bin:/bin";

#[derive(Deserialize)]
struct Params {
    bins: Vec<String>,
}

#[derive(Serialize)]
struct Found {
    bins: BTreeMap<String, String>,
}

pub(super) async fn answer(params_json: &str, host: &Arc<Host>) -> Result<String, NodeError> {
    let params: Params = serde_json::from_str(params_json)
        .map_err(|_| NodeError::invalid("INVALID_REQUEST: bins required"))?;
    if params.bins.len() > EXEC_WHICH_NAMES_MAX {
        return Err(NodeError::invalid(format!(
            "INVALID_REQUEST: {} bins, at most {EXEC_WHICH_NAMES_MAX}",
            params.bins.len()
        )));
    }
    let host = Arc::clone(host);
    let bins = blocking(move || {
        let found = params.bins.into_iter().filter_map(|name| {
            // A path that is not UTF-8 has no place in JSON.
            let path = find(&name, &host.path)?.into_os_string().into_string();
            Some((name, path.ok()?))
        });
        found.collect()
    })
    .await?;
    payload(&Found { bins })
}

/// The first executable file of that name. A name with a slash is none; directories of `PATH` that are not absolute
/// are passed over, since they would mean something else in each command's directory.
pub fn find(name: &str, path: &OsStr) -> Option<PathBuf> {
    first(name, path, is_executable)
}

/// The first file of that name of which this is so.
pub(super) fn first(name: &str, path: &OsStr, is_it: fn(&Path) -> bool) -> Option<PathBuf> {
    if name.is_empty() || name.contains(['/', '\0']) {
        return None;
    }
    std::env::split_paths(path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|candidate| is_it(candidate))
}

pub(super) fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}
