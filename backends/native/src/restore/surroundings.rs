//! Whether this machine can run what was saved: its kernel's vdso, its processor.

use crate::model::Machine;
use stasis_plugin_api::prelude::*;

/// Which of the four answers of a leaf are sets of features, all of which have to be there again.
const FEATURES: [(u32, u32, [bool; 4]); 6] = [
    (1, 0, [false, false, true, true]),
    (7, 0, [false, true, true, true]),
    (7, 1, [true, true, true, true]),
    (0xd, 0, [true, false, false, true]),
    (0xd, 1, [true, false, false, false]),
    (0x8000_0001, 0, [false, false, true, true]),
];

fn unsupported(why: String, help: &str) -> BackendError {
    BackendError::new(kind::UNSUPPORTED, "the application cannot be rebuilt on this machine")
        .because(why)
        .help(help)
}

/// Refuses an image of another kind of machine.
pub(super) fn fit(saved: &Machine) -> Result<()> {
    if saved.architecture != std::env::consts::ARCH {
        let why = format!("it was saved on {}, and this is {}", saved.architecture, std::env::consts::ARCH);
        return Err(unsupported(why, "restart it on a machine of that kind"));
    }
    if let Some(missing) = missing(&saved.cpuid, &crate::arch::cpuid::leaves()) {
        let why = format!("this processor lacks something that the saved program may use ({missing})");
        return Err(unsupported(why, "restart it on a processor that has at least the same features"));
    }
    let here = crate::arch::machine::vdso()?;
    if saved.vdso != here {
        let kernel = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned());
        let why = format!(
            "its kernel was {}, and the code that {} gives to programs (vdso) is another",
            saved.kernel,
            kernel.unwrap_or_default()
        );
        return Err(unsupported(why, "restart it under the kernel that it was saved under"));
    }
    Ok(())
}

/// The first features that were there and are not here.
fn missing(saved: &[[u32; 6]], here: &[[u32; 6]]) -> Option<String> {
    for (leaf, subleaf, which) in FEATURES {
        let row = |rows: &[[u32; 6]]| rows.iter().find(|r| r[0] == leaf && r[1] == subleaf).copied();
        let Some(then) = row(saved) else { continue };
        let now = row(here).unwrap_or_default();
        for (register, name) in ["eax", "ebx", "ecx", "edx"].into_iter().enumerate() {
            let bits = then.get(register + 2).unwrap_or(&0) & !now.get(register + 2).unwrap_or(&0);
            if which.get(register) == Some(&true) && bits != 0 {
                return Some(format!("cpuid {leaf:x}.{subleaf} {name} {bits:#x}"));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Machine {
        crate::arch::machine::machine().unwrap()
    }

    #[test]
    fn this_machine_fits_itself() {
        fit(&here()).unwrap();
    }

    #[test]
    fn other_machines_are_told() {
        let told = |change: fn(&mut Machine)| {
            let mut machine = here();
            change(&mut machine);
            fit(&machine).unwrap_err().to_string()
        };
        insta::assert_snapshot!(told(|m| m.architecture = "aarch64".into()), @"the application cannot be rebuilt on this machine: it was saved on aarch64, and this is x86_64");
        insta::assert_snapshot!(told(|m| m.cpuid = vec![[7, 1, 0, 0, u32::MAX, 0]]).split(" (").next().unwrap(), @"the application cannot be rebuilt on this machine: this processor lacks something that the saved program may use");
        let other = told(|m| (m.vdso, m.kernel) = (1, "1.2.3".into()));
        assert!(other.contains("its kernel was 1.2.3, and the code that "), "{other}");
    }
}
