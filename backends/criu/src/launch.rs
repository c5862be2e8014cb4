//! What a container needs so that CRIU can save and rebuild what runs in it.

use crate::command::WORK;
use crate::discover::Criu;
use crate::options::{self, Tcp};
use stasis_plugin_api::prelude::*;

/// The application's pid: far enough from those of init and its helpers.
const FIRST_PID: i32 = 100;
/// CRIU's working files are small.
const WORK_SIZE: u64 = 16 << 20;

/// The plan.
pub(crate) fn plan(host: &mut Host<'_>, criu: &Criu, request: &LaunchRequest) -> Result<LaunchPlan> {
    options::ghost_limit(host)?;
    options::remember_tcp(host);
    connections(options::tcp(host), request.rootless, request.own_network)?;
    let id_map = match request.rootless {
        true => id_map(&request.id_maps),
        false => IdMap::Keep,
    };
    let mut notes = Vec::new();
    if request.rootless && id_map == IdMap::Root && request.process.uid != 0 {
        notes.push(
            "inside you are root: CRIU needs uid 0 there, and you have no subordinate ids beside which you could stay yourself"
                .to_owned(),
        );
    }
    Ok(LaunchPlan { needs: needs(criu, id_map), wrap: Vec::new(), notes })
}

/// CRIU itself needs uid 0 inside; the application keeps its own where both can be had.
fn id_map(possible: &[IdMap]) -> IdMap {
    if possible.contains(&IdMap::KeepAndZero) { IdMap::KeepAndZero } else { IdMap::Root }
}

/// Keeping a connection means taking it apart, which only the owner of the network may do.
pub(crate) fn connections(tcp: Tcp, rootless: bool, own_network: bool) -> Result<()> {
    if tcp == Tcp::Keep && rootless && !own_network {
        return Err(BackendError::new(kind::UNSUPPORTED, "TCP connections cannot be kept")
            .because(
                "the container uses the host's network, which an ordinary user cannot take connections from",
            )
            .help("give the container a network of its own with --net, or use --tcp close"));
    }
    Ok(())
}

/// Mounts, ids, streams. The same at a launch and at a restart.
pub(crate) fn needs(criu: &Criu, id_map: IdMap) -> Needs {
    Needs {
        binds: criu.binds(),
        directories: vec![Directory { path: WORK.into(), mode: 0o1777, tmpfs: Some(WORK_SIZE) }],
        id_map,
        first_pid: Some(FIRST_PID),
        // CRIU saves one tree; a daemon would leave it.
        subreaper: true,
        // Every other stream ends outside of what is saved.
        stdio: vec![StdioKind::File],
        ..Needs::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_own_id_is_kept_where_zero_can_be_had_as_well() {
        assert_eq!(id_map(&[IdMap::Keep, IdMap::Root]), IdMap::Root);
        assert_eq!(id_map(&[IdMap::Keep, IdMap::Root, IdMap::KeepAndZero]), IdMap::KeepAndZero);
        assert_eq!(id_map(&[]), IdMap::Root);
    }

    #[test]
    fn connections_are_kept_only_by_the_networks_owner() {
        for tcp in [Tcp::Refuse, Tcp::Close] {
            connections(tcp, true, false).unwrap();
        }
        connections(Tcp::Keep, true, true).unwrap();
        connections(Tcp::Keep, false, false).unwrap();
        insta::assert_snapshot!(
            connections(Tcp::Keep, true, false).unwrap_err(),
            @"TCP connections cannot be kept: the container uses the host's network, which an ordinary user cannot take connections from"
        );
    }
}
