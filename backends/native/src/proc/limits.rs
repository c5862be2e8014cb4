//! `/proc/PID/limits`, for processes of other users: asking the kernel for those takes CAP_SYS_RESOURCE.

use super::malformed;
use stasis_plugin_api::error::Result;

/// Where the columns begin.
const SOFT: usize = 26;

/// Soft and hard limits; the lines are in the order of the resources' numbers.
pub(crate) fn parse(text: &str) -> Result<Vec<[u64; 2]>> {
    let number = |word: &str| match word {
        "unlimited" => Some(u64::MAX),
        word => word.parse().ok(),
    };
    let line = |line: &str| {
        let mut words = line.get(SOFT..)?.split_whitespace();
        Some([number(words.next()?)?, number(words.next()?)?])
    };
    let all: Option<Vec<[u64; 2]>> = text.lines().skip(1).map(line).collect();
    all.filter(|all| all.len() == 16).ok_or_else(|| malformed("limits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_that_the_kernel_tells() {
        let text = std::fs::read_to_string("/proc/self/limits").unwrap();
        assert_eq!(parse(&text).unwrap(), crate::sys::process::limits(0).unwrap());
        assert!(parse("").is_err());
        assert!(parse(&text.replace("Max open files", "Max")).is_err());
    }
}
