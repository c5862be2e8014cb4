//! `/proc/PID/status`.

use super::malformed;
use crate::model::Credentials;
use stasis_plugin_api::error::Result;

/// The fields that are used.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Status {
    pub(crate) tgid: i32,
    pub(crate) tracer: i32,
    pub(crate) umask: u32,
    pub(crate) seccomp: u32,
    pub(crate) shadow_stack: bool,
    /// Not all bits of an address count.
    pub(crate) tagged: bool,
    pub(crate) credentials: Credentials,
    /// How many pid namespaces it is in, seen from here.
    pub(crate) namespaces: usize,
}

pub(crate) fn parse(text: &str) -> Result<Status> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim)
    };
    let need = |name: &str| field(name).ok_or_else(|| malformed(&format!("status without {name}")));
    let hex = |name: &str| {
        u64::from_str_radix(need(name)?, 16).map_err(|_| malformed(&format!("{name} in status")))
    };
    let int = |name: &str| need(name)?.parse().map_err(|_| malformed(&format!("{name} in status")));
    let four = |name: &str| -> Result<[u32; 4]> {
        let ids: Vec<u32> = need(name)?.split_whitespace().filter_map(|id| id.parse().ok()).collect();
        ids.try_into().map_err(|_| malformed(&format!("{name} in status")))
    };
    Ok(Status {
        tgid: int("Tgid")?,
        tracer: int("TracerPid")?,
        umask: field("Umask").and_then(|mask| u32::from_str_radix(mask, 8).ok()).unwrap_or(0o22),
        seccomp: field("Seccomp").and_then(|mode| mode.parse().ok()).unwrap_or(0),
        shadow_stack: field("x86_Thread_features").is_some_and(|f| f.contains("shstk")),
        tagged: field("untag_mask").is_some_and(|mask| mask != "0xffffffffffffffff"),
        credentials: Credentials {
            uids: four("Uid")?,
            gids: four("Gid")?,
            groups: need("Groups")?.split_whitespace().filter_map(|id| id.parse().ok()).collect(),
            inheritable: hex("CapInh")?,
            permitted: hex("CapPrm")?,
            effective: hex("CapEff")?,
            bounding: hex("CapBnd")?,
            ambient: hex("CapAmb")?,
            securebits: 0,
            no_new_privs: field("NoNewPrivs") == Some("1"),
        },
        namespaces: field("NSpid").map_or(1, |pids| pids.split_whitespace().count()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Name:\tx\nUmask:\t0027\nTgid:\t7\nTracerPid:\t0\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t10 20 \n\
NSpid:\t7\nCapInh:\t0\nCapPrm:\tff\nCapEff:\tff\nCapBnd:\t1ff\nCapAmb:\t1\nNoNewPrivs:\t1\nSeccomp:\t0\n\
x86_Thread_features:\t\n";

    #[test]
    fn the_fields() {
        let status = parse(TEXT).unwrap();
        assert_eq!((status.tgid, status.umask, status.seccomp, status.shadow_stack), (7, 0o27, 0, false));
        assert_eq!(status.credentials.uids, [1, 2, 3, 4]);
        assert_eq!(status.credentials.groups, [10, 20]);
        assert_eq!((status.credentials.bounding, status.credentials.no_new_privs), (0x1ff, true));
    }

    #[test]
    fn what_is_only_told_by_some_processors() {
        let with = |line: &str| parse(&format!("{TEXT}{line}\n")).unwrap().tagged;
        assert!(!with("") && !with("untag_mask:\t0xffffffffffffffff"));
        assert!(with("untag_mask:\t0x81ffffffffffffff"));
    }

    #[test]
    fn a_missing_field_is_refused() {
        assert!(parse(&TEXT.replace("CapPrm", "Other")).is_err());
    }
}
