//! DMTCP's own words, translated. What is not known stays in the error as the engine's output.

use stasis_plugin_api::error::BackendError;

/// A text of the engine's, what it means, and what to do.
struct Meaning {
    sign: &'static str,
    why: &'static str,
    help: &'static str,
}

const MEANINGS: &[Meaning] = &[
    Meaning {
        sign: "error while loading shared libraries",
        why: "the image lacks a library that DMTCP needs",
        help: "`stasis backend check dmtcp IMAGE` names it",
    },
    Meaning {
        sign: "version `GLIBC",
        why: "the image's glibc is older than the one that this DMTCP was built against",
        help: "let the administrator install a DMTCP built against an older glibc, and name it in `prefixes`",
    },
    Meaning {
        sign: "Did DMTCP coordinator die uncleanly",
        why: "DMTCP's coordinator was lost, and the application ended with it",
        help: "bring the last generation back",
    },
    Meaning {
        sign: "Bind failed",
        why: "a port that the application listened on is taken",
        help: "end the program that listens there, or restart with --net",
    },
    Meaning {
        sign: "failed to get peer discovery data",
        why: "a connection to a peer outside of the container cannot be restored",
        help: "save while no such connection is open",
    },
    Meaning {
        sign: "fileconnection.cpp",
        why: "a file that the application had open is missing or has changed since it was saved",
        help: "put the file back to its place",
    },
    Meaning {
        sign: "Inotify not yet supported",
        why: "the application watches files with inotify, which DMTCP does not support",
        help: "switch that off in the application, or take another backend",
    },
    Meaning {
        sign: "only Netlink raw sockets supported",
        why: "the application opened a raw socket, which DMTCP does not support",
        help: "take another backend",
    },
    Meaning {
        sign: "appears not to be readable",
        why: "DMTCP found no readable program of that name",
        help: "check the name and its permissions in the image",
    },
    Meaning {
        sign: "failed to write checkpoint data",
        why: "DMTCP could not write the state",
        help: "look for free space and quota where the checkpoints are",
    },
    Meaning {
        sign: "Invalid magic number in checkpoint file",
        why: "a file of the saved state is damaged",
        help: "bring an earlier generation back",
    },
    Meaning {
        sign: "Process uid doesn't match uid of checkpoint image",
        why: "the saved state belongs to another user",
        help: "only the user who saved it can bring it back",
    },
];

/// Adds what the output means, and the lines that say it.
pub(crate) fn explain(error: BackendError, output: &str) -> BackendError {
    let error = match MEANINGS.iter().find(|m| output.contains(m.sign)) {
        Some(meaning) => {
            let error = error.because(meaning.why);
            if error.help.is_none() { error.help(meaning.help) } else { error }
        }
        None => error,
    };
    error.engine_output(last_lines(output))
}

/// Whether the output tells of a failure of DMTCP's or of its loading.
pub(crate) fn is_known(output: &str) -> bool {
    output.contains("ASSERT at") || MEANINGS.iter().any(|m| output.contains(m.sign))
}

/// Whether the engine told of a failure on stderr.
pub(crate) fn is_bad(output: &str) -> bool {
    output.contains("Bind failed") || output.contains("ASSERT at")
}

fn last_lines(output: &str) -> String {
    let lines: Vec<&str> = output.lines().filter(|l| !l.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_words_are_translated_and_unknown_ones_kept() {
        let error = explain(
            BackendError::failed("x"),
            "[40000] WARNING at socketconnection.cpp:839 in f; REASON='Bind failed'\n",
        );
        insta::assert_snapshot!(error, @"x: a port that the application listened on is taken");
        assert!(error.help.is_some());
        let error = explain(BackendError::failed("x"), "a strange thing\n\n");
        insta::assert_snapshot!(error, @"x");
        assert_eq!(error.engine_output.as_deref(), Some("a strange thing"));
        assert!(is_bad("ASSERT at a.cpp:1") && !is_bad("all is well"));
    }
}
