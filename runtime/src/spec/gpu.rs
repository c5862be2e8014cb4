//! What a container needs of a graphics processor's driver: the host's libraries and programs, which fit its kernel
//! module, and its devices. Which ones is said by a list in Apptainer's format. Pure: what is there was looked up.

use super::{ContainerSpec, Mount};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Inside: where the libraries lie, which is in `LD_LIBRARY_PATH`.
pub const LIBRARIES: &str = "/.singularity.d/libs";

/// Whose driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// `--nv`.
    Nvidia,
    /// `--rocm`.
    Amd,
}

impl Vendor {
    /// As in the name of the flag and of the list.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Nvidia => "nv",
            Self::Amd => "rocm",
        }
    }

    /// The devices: the beginnings of their names in `/dev`.
    #[must_use]
    pub fn devices(self) -> &'static [&'static str] {
        match self {
            Self::Nvidia => &["nvidia"],
            Self::Amd => &["kfd", "dri"],
        }
    }

    /// Sockets of the driver's services.
    #[must_use]
    pub fn sockets(self) -> &'static [&'static str] {
        match self {
            Self::Nvidia => &["/var/run/nvidia-persistenced/socket"],
            Self::Amd => &[],
        }
    }

    /// The list for a host without one of its own.
    #[must_use]
    pub fn list(self) -> &'static str {
        match self {
            Self::Nvidia => {
                "nvidia-smi\nnvidia-debugdump\nnvidia-persistenced\nnvidia-cuda-mps-control\nnvidia-cuda-mps-server\n\
                 libcuda.so\nlibcudadebugger.so\nlibnvidia-ml.so\nlibnvidia-cfg.so\nlibnvidia-compiler.so\n\
                 libnvidia-nvvm.so\nlibnvidia-ptxjitcompiler.so\nlibnvidia-opencl.so\nlibnvidia-gpucomp.so\n\
                 libnvidia-encode.so\nlibnvidia-opticalflow.so\nlibnvcuvid.so\nlibnvoptix.so\nlibnvidia-rtcore.so\n\
                 libnvidia-tls.so\nlibnvidia-glcore.so\nlibnvidia-glsi.so\nlibnvidia-eglcore.so\n\
                 libnvidia-glvkspirv.so\nlibnvidia-allocator.so\nlibnvidia-fbc.so\nlibGLX_nvidia.so\n\
                 libEGL_nvidia.so\nlibGLESv1_CM_nvidia.so\nlibGLESv2_nvidia.so\nlibvdpau_nvidia.so\n"
            }
            Self::Amd => {
                "rocminfo\nrocm-smi\nrocm_agent_enumerator\n\
                 libamdhip64.so\nlibamdocl64.so\nlibamd_comgr.so\nlibhsa-runtime64.so\nlibhsakmt.so\n\
                 libhiprtc.so\nlibhipblas.so\nlibhipfft.so\nlibhiprand.so\nlibhipsparse.so\nlibhipsolver.so\n\
                 libMIOpen.so\nlibrccl.so\nlibrocblas.so\nlibrocfft.so\nlibrocrand.so\nlibrocsolver.so\n\
                 librocsparse.so\nlibroctracer64.so\nlibroctx64.so\nlibrocm_smi64.so\nlibdrm.so\nlibdrm_amdgpu.so\n"
            }
        }
    }
}

/// What is on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Names as programs look for them, and where they are.
    pub libraries: BTreeMap<String, PathBuf>,
    /// Programs.
    pub programs: Vec<PathBuf>,
    /// Sockets that exist.
    pub sockets: Vec<PathBuf>,
    /// Devices, below `/dev`.
    pub devices: Vec<PathBuf>,
}

/// The entries of a list: those with `.so` are libraries, the others programs. Text after `#` is a remark.
pub fn entries(list: &str) -> (Vec<&str>, Vec<&str>) {
    let lines = list.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).partition(|line| line.contains(".so"))
}

/// The libraries of the list that the loader of this host knows, out of what `ldconfig -p` prints. `libcuda.so` in
/// the list stands for every version of it.
pub fn libraries(wanted: &[&str], loader: &str) -> BTreeMap<String, PathBuf> {
    let architecture = if cfg!(target_arch = "aarch64") { "AArch64" } else { "x86-64" };
    let mut found = BTreeMap::new();
    for line in loader.lines() {
        let Some((name, rest)) = line.trim().split_once(" (") else { continue };
        let Some((kind, path)) = rest.split_once(") => ") else { continue };
        let fits = kind.split([',', ' ']).any(|word| word == architecture);
        let of_list =
            |entry: &&str| name.strip_prefix(*entry).is_some_and(|r| r.is_empty() || r.starts_with('.'));
        if fits && path.starts_with('/') && wanted.iter().any(of_list) {
            // The loader takes the first of a name.
            found.entry(name.to_owned()).or_insert_with(|| PathBuf::from(path));
        }
    }
    found
}

/// Puts the mounts into a container. An image without a place for such libraries does not look there by itself.
pub fn add(spec: &mut ContainerSpec, mounts: Vec<Mount>) {
    let library = |m: &Mount| matches!(m, Mount::Bind { target, .. } if target.starts_with(LIBRARIES));
    if mounts.iter().any(library) {
        spec.process.env.entry("LD_LIBRARY_PATH".to_owned()).or_insert_with(|| LIBRARIES.to_owned());
    }
    spec.mounts.extend(mounts);
}

/// The mounts, and what is missing as a warning of Apptainer's. `contain`: `/dev` inside is a small one.
#[must_use]
pub fn mounts(vendor: Vendor, found: &Found, contain: bool, writable: bool) -> (Vec<Mount>, Vec<String>) {
    let word = vendor.word();
    let (mut mounts, mut warnings) = (Vec::new(), Vec::new());
    let bind = |source: &Path, target: PathBuf, writable: bool| Mount::Bind {
        source: source.to_owned(),
        target,
        writable,
        optional: true,
        user: false,
    };
    if found.programs.is_empty() && found.sockets.is_empty() {
        warnings.push(format!("Could not find any {word} files on this host!"));
    } else if writable {
        warnings.push(format!("{word} files may not be bound with --writable"));
    }
    if found.libraries.is_empty() {
        warnings.push(format!("Could not find any {word} libraries on this host!"));
    }
    for program in &found.programs {
        if let Some(name) = program.file_name() {
            mounts.push(bind(program, Path::new("/usr/bin").join(name), false));
        }
    }
    mounts.extend(found.sockets.iter().map(|socket| bind(socket, socket.clone(), true)));
    mounts.extend(
        found.libraries.iter().map(|(name, path)| bind(path, Path::new(LIBRARIES).join(name), false)),
    );
    if contain {
        mounts.extend(found.devices.iter().map(|device| bind(device, device.clone(), true)));
    }
    (mounts, warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOADER: &str = "5 libs found in cache `/etc/ld.so.cache'
\tlibcuda.so.1 (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libcuda.so.1
\tlibcuda.so.1 (libc6,x86-64) => /opt/second/libcuda.so.1
\tlibcuda.so (libc6,x86-64, OS ABI: Linux 2.3.99) => /usr/lib/x86_64-linux-gnu/libcuda.so
\tlibcuda.so.1 (libc6) => /usr/lib/i386-linux-gnu/libcuda.so.1
\tlibcudart.so.12 (libc6,x86-64) => /usr/lib/libcudart.so.12
nonsense
\tlibnvidia-ml.so.1 (libc6,x86-64) => relative/libnvidia-ml.so.1
";

    #[test]
    fn a_list_has_programs_and_libraries() {
        let (libraries, programs) = entries("# all\n libcuda.so # the driver\n\nnvidia-smi\nlibx.so.1\n");
        assert_eq!((libraries, programs), (vec!["libcuda.so", "libx.so.1"], vec!["nvidia-smi"]));
        for vendor in [Vendor::Nvidia, Vendor::Amd] {
            let (libraries, programs) = entries(vendor.list());
            assert!(libraries.len() > 10 && programs.len() > 2);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn libraries_are_those_of_the_loader_for_this_architecture() {
        let found = libraries(&["libcuda.so", "libnvidia-ml.so"], LOADER);
        let found: Vec<String> =
            found.iter().map(|(name, path)| format!("{name} {}", path.display())).collect();
        assert_eq!(
            found,
            [
                "libcuda.so /usr/lib/x86_64-linux-gnu/libcuda.so",
                "libcuda.so.1 /usr/lib/x86_64-linux-gnu/libcuda.so.1"
            ]
        );
    }

    #[test]
    fn what_is_found_is_shown_and_what_is_not_is_said() {
        let (nothing, warnings) = mounts(Vendor::Nvidia, &Found::default(), true, false);
        assert!(nothing.is_empty());
        insta::assert_snapshot!(warnings.join("\n"), @"
        Could not find any nv files on this host!
        Could not find any nv libraries on this host!
        ");
        let found = Found {
            libraries: [("libcuda.so.1".to_owned(), "/lib/libcuda.so.1".into())].into(),
            programs: vec!["/usr/local/bin/nvidia-smi".into()],
            sockets: vec!["/var/run/nvidia-persistenced/socket".into()],
            devices: vec!["/dev/nvidia0".into()],
        };
        let targets = |contain| {
            let (mounts, warnings) = mounts(Vendor::Nvidia, &found, contain, false);
            assert!(warnings.is_empty());
            let target = |m: &Mount| super::super::resolve::mount_target(m).display().to_string();
            mounts.iter().map(target).collect::<Vec<_>>().join(" ")
        };
        insta::assert_snapshot!(targets(false), @"/usr/bin/nvidia-smi /var/run/nvidia-persistenced/socket /.singularity.d/libs/libcuda.so.1");
        insta::assert_snapshot!(targets(true), @"/usr/bin/nvidia-smi /var/run/nvidia-persistenced/socket /.singularity.d/libs/libcuda.so.1 /dev/nvidia0");
    }
}
