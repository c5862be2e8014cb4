//! Whether a socket has joined a multicast group. The kernel tells groups by interface, and answers for one socket when
//! it is asked about one of them.

use super::descriptors::Seen;
use crate::sys::socket;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A group that somebody of this network namespace has joined, and the interface's number.
type Joined = (u32, IpAddr);

/// The first group that the socket is a member of.
pub(crate) fn group(seen: &Seen<'_>) -> Option<IpAddr> {
    let table = |name: &str| std::fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    let joined = four(&table("igmp")).into_iter().chain(six(&table("igmp6")));
    joined
        .into_iter()
        .find(|(interface, group)| socket::is_member(&seen.copy, *interface, *group))
        .map(|(_, g)| g)
}

/// `/proc/net/igmp`: a line for each interface, which begins with its number, and indented ones for its groups.
fn four(table: &str) -> Vec<Joined> {
    let mut all = Vec::new();
    let mut interface = None;
    for line in table.lines().skip(1) {
        let Some(word) = line.split_whitespace().next() else { continue };
        if !line.starts_with(char::is_whitespace) {
            interface = word.parse().ok();
        } else if let (Some(interface), Ok(group)) = (interface, u32::from_str_radix(word, 16)) {
            // The address as it lies in memory, read as a number.
            all.push((interface, Ipv4Addr::from(group.to_ne_bytes()).into()));
        }
    }
    all
}

/// `/proc/net/igmp6`: interface's number and name, group.
fn six(table: &str) -> Vec<Joined> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (interface, group) = (words.next()?, words.nth(1)?);
        let group = u128::from_str_radix(group, 16).ok()?;
        Some((interface.parse().ok()?, Ipv6Addr::from(group).into()))
    };
    table.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_by_interface() {
        let table = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                     1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n\
                     4\teth0      :     2      V3\n\t\t\t\tFB0000E0     1 0:00000000\t\t0\n\
                     \t\t\t\t010000E0     1 0:00000000\t\t0\n";
        let told: Vec<String> = four(table).iter().map(|(at, group)| format!("{at} {group}")).collect();
        assert_eq!(told, ["1 224.0.0.1", "4 224.0.0.251", "4 224.0.0.1"]);
        let table = "1    lo              ff020000000000000000000000000001     1 0000000C 0\nnonsense\n";
        let told: Vec<String> = six(table).iter().map(|(at, group)| format!("{at} {group}")).collect();
        assert_eq!(told, ["1 ff02::1"]);
    }
}
