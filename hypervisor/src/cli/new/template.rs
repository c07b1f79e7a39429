//! The files of new projects: those under `hypervisor/templates`, with the kernel's name and the place of its SDK.

use super::lock;
use super::sdk::Sdk;

/// A project to write.
pub(super) struct Template {
    /// The manifests: paths in the project, and what is there. In them is where the SDK is.
    manifests: &'static [(&'static str, &'static str)],
    lock: &'static str,
    /// `.cargo/config.toml`.
    config: &'static str,
    /// Paths in the project, and what is there.
    sources: &'static [(&'static str, &'static str)],
}

/// A file to write.
pub(super) struct File {
    /// Its path in the project.
    pub(super) path: &'static str,
    pub(super) text: String,
}

macro_rules! file {
    ($path:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/templates/", $path))
    };
}

/// What every project has.
const COMMON: [(&str, &str); 3] = [
    (".vscode/settings.json", file!("common/vscode-settings.json")),
    (".vscode/launch.json", file!("common/vscode-launch.json")),
    (".gitignore", file!("common/gitignore")),
];

/// Of a kernel alone.
const BUILD: (&str, &str) = ("build.rs", file!("common/build.rs"));

/// `--minimal`.
pub(super) const MINIMAL: Template = Template {
    manifests: &[("Cargo.toml", file!("minimal/manifest.toml"))],
    lock: file!("minimal/lock.toml"),
    config: file!("common/cargo-config.toml"),
    sources: &[
        BUILD,
        ("src/main.rs", file!("minimal/src/main.rs")),
        ("tests/boot.rs", file!("minimal/tests/boot.rs")),
    ],
};

/// `--virtio`.
pub(super) const VIRTIO: Template = Template {
    manifests: &[("Cargo.toml", file!("virtio/manifest.toml"))],
    lock: file!("virtio/lock.toml"),
    config: file!("virtio/cargo-config.toml"),
    sources: &[
        BUILD,
        ("src/main.rs", file!("virtio/src/main.rs")),
        ("src/lib.rs", file!("virtio/src/lib.rs")),
        ("tests/devices.rs", file!("virtio/tests/devices.rs")),
    ],
};

/// `--user`.
pub(super) const USER: Template = Template {
    manifests: &[
        ("Cargo.toml", file!("user/manifest.toml")),
        ("programs/Cargo.toml", file!("user/programs/manifest.toml")),
    ],
    lock: file!("user/lock.toml"),
    config: file!("common/cargo-config.toml"),
    sources: &[
        ("build.rs", file!("user/build.rs")),
        ("src/main.rs", file!("user/src/main.rs")),
        ("src/lib.rs", file!("user/src/lib.rs")),
        ("src/calls.rs", file!("user/src/calls.rs")),
        ("src/programs.rs", file!("user/src/programs.rs")),
        ("src/system_calls.rs", file!("user/src/system_calls.rs")),
        ("tests/programs.rs", file!("user/tests/programs.rs")),
        ("programs/build.rs", file!("user/programs/build.rs")),
        ("programs/src/lib.rs", file!("user/programs/src/lib.rs")),
        ("programs/src/runtime.rs", file!("user/programs/src/runtime.rs")),
        ("programs/src/bin/hello.rs", file!("user/programs/src/bin/hello.rs")),
        ("programs/src/bin/spy.rs", file!("user/programs/src/bin/spy.rs")),
        ("programs/src/bin/endless.rs", file!("user/programs/src/bin/endless.rs")),
    ],
};

/// Without an option.
pub(super) const USUAL: Template = Template {
    manifests: &[("Cargo.toml", file!("usual/manifest.toml"))],
    lock: file!("usual/lock.toml"),
    config: file!("common/cargo-config.toml"),
    sources: &[
        BUILD,
        ("src/main.rs", file!("usual/src/main.rs")),
        ("src/lib.rs", file!("usual/src/lib.rs")),
        ("src/heap.rs", file!("usual/src/heap.rs")),
        ("src/timer.rs", file!("usual/src/timer.rs")),
        ("tests/kernel.rs", file!("usual/tests/kernel.rs")),
    ],
};

impl Template {
    /// The files of a project called `name`.
    pub(super) fn files(&self, name: &str, sdk: &Sdk) -> Vec<File> {
        let manifests = self.manifests.iter();
        let mut files: Vec<File> =
            manifests.map(|(path, text)| File { path, text: named(name, &manifest(text, sdk)) }).collect();
        if matches!(sdk, Sdk::Source(_)) {
            // Of packages from a registry the file would have the checksums.
            files.push(File { path: "Cargo.lock", text: lock::for_package(name, self.lock) });
        }
        files.push(File { path: ".cargo/config.toml", text: self.config.to_owned() });
        let sources = COMMON.iter().chain(self.sources);
        files.extend(sources.map(|(path, text)| File { path, text: named(name, text) }));
        files
    }
}

fn manifest(text: &str, sdk: &Sdk) -> String {
    text.lines().map(|line| sdk.dependency(line) + "\n").collect()
}

/// The text with the kernel's name, as a package and as a crate.
fn named(name: &str, text: &str) -> String {
    text.replace("my-kernel", name).replace("my_kernel", &name.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_has_its_own_name_everywhere() {
        for template in [&MINIMAL, &VIRTIO, &USER, &USUAL] {
            for sdk in [Sdk::Registry, Sdk::Source("/sdk".into())] {
                let files = template.files("a-b", &sdk);
                assert!(
                    files
                        .iter()
                        .all(|file| !file.text.contains("my-kernel") && !file.text.contains("my_kernel"))
                );
                let manifest = &files[0].text;
                assert!(manifest.contains("name = \"a-b\""), "{manifest}");
                assert_eq!(
                    manifest.contains("path = \"/sdk/guest-sdk\""),
                    sdk != Sdk::Registry,
                    "{manifest}"
                );
            }
        }
    }
}
