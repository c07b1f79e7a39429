//! What the store says of the domain before anybody has written to it: what Xen's toolstack writes for a domU, as far
//! as it is true here.

use paravane_abi::domid::DomId;

use super::node::{Node, Tree};
use super::path::Path;
use super::perms::{Access, Perms};

/// Who the host is.
const HOST: DomId = 0;

/// What the store is to say of its domain.
#[derive(Clone, Debug)]
pub struct About {
    /// The domain's number.
    pub domain: DomId,
    /// Its name.
    pub name: String,
    /// How many vCPUs it has.
    pub vcpus: usize,
    /// Its memory, in KiB.
    pub memory_kib: u64,
    /// Frame and port of the store's own ring.
    pub store: (u64, u32),
    /// Frame and port of the console's.
    pub console: (u64, u32),
}

impl About {
    /// Where relative paths begin.
    pub fn home(&self) -> Path {
        Path::known(&format!("/local/domain/{}", self.domain))
    }

    /// The store as it is before the guest's first request.
    pub(super) fn tree(&self) -> Tree {
        let mut tree = Tree::new(self.domain);
        let mut plant = Plant { about: self, tree: &mut tree };
        plant.all();
        tree
    }
}

struct Plant<'a> {
    about: &'a About,
    tree: &'a mut Tree,
}

impl Plant<'_> {
    fn all(&mut self) {
        let hidden = Perms { owner: HOST, others: Access::NONE, listed: vec![] };
        for above in ["/", "/local", "/local/domain", "/vm"] {
            self.node(Path::known(above), &hidden, "");
        }
        let About { name, vcpus, memory_kib, store, console, domain } = self.about.clone();
        let vm = Path::known("/vm").child(NO_UUID);
        for (path, value) in [("", ""), ("/name", name.as_str()), ("/uuid", NO_UUID)] {
            self.readable(Path::known(&format!("{vm}{path}")), value);
        }
        for (path, value) in [
            ("", String::new()),
            ("/vm", vm.to_string()),
            ("/name", name),
            ("/domid", domain.to_string()),
            ("/cpu", String::new()),
            ("/memory", String::new()),
            ("/memory/static-max", memory_kib.to_string()),
            ("/memory/target", memory_kib.to_string()),
            ("/store", String::new()),
            ("/store/ring-ref", store.0.to_string()),
            ("/store/port", store.1.to_string()),
            ("/console", String::new()),
            ("/console/type", "xenconsoled".into()),
            ("/console/ring-ref", console.0.to_string()),
            ("/console/port", console.1.to_string()),
            ("/control", String::new()),
            ("/control/platform-feature-xs_reset_watches", "1".into()),
            ("/device", String::new()),
        ] {
            self.readable(Path::known(&format!("{}{path}", self.about.home())), &value);
        }
        for vcpu in (0..vcpus).map(|number| format!("/cpu/{number}")) {
            self.readable(Path::known(&format!("{}{vcpu}", self.about.home())), "");
            self.readable(Path::known(&format!("{}{vcpu}/availability", self.about.home())), "online");
        }
        // The guest's own: what the toolstack and the guest ask of each other, and where the guest says what it can.
        for path in [
            "/control/shutdown",
            "/control/feature-poweroff",
            "/control/feature-reboot",
            "/control/feature-suspend",
            "/control/sysrq",
            "/data",
            "/drivers",
            "/feature",
            "/attr",
            "/error",
        ] {
            let own = Perms { owner: domain, others: Access::NONE, listed: vec![] };
            self.node(Path::known(&format!("{}{path}", self.about.home())), &own, "");
        }
    }

    /// A node that the guest may read.
    fn readable(&mut self, path: Path, value: &str) {
        let listed = vec![(self.about.domain, Access::READ)];
        self.node(path, &Perms { owner: HOST, others: Access::NONE, listed }, value);
    }

    fn node(&mut self, path: Path, perms: &Perms, value: &str) {
        if let Some((parent, name)) = path.split() {
            self.tree.adopt(&parent, name);
        }
        self.tree.put(path, Node { value: value.as_bytes().to_vec(), ..Node::new(perms.clone()) });
    }
}

/// The UUID of a domain that was given none: what XENVER_guest_handle says, too.
const NO_UUID: &str = "00000000-0000-0000-0000-000000000000";
