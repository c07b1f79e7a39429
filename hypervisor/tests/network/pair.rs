//! Two guests that are connected over a socket.

use std::path::PathBuf;

use super::guest::{Guest, everywhere};

const SERVER: &str = "10.8.0.1";
const CLIENT: &str = "10.8.0.2";

/// A path for a socket, deleted on drop.
struct Wire(PathBuf);

impl Wire {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("paravane-pair-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        Self(path)
    }
    fn guest(&self, options: &[&str], address: &str) -> Guest {
        let server = if address == SERVER { ",server" } else { "" };
        let net = format!("unix={}{server}", self.0.display());
        Guest::start(options, &["--net", &net, "--cmdline", &format!("ip={address}/24")])
    }
    /// Two guests, of which the first runs servers.
    fn guests(&self, options: &[&str]) -> [Guest; 2] {
        let mut server = self.guest(options, SERVER);
        // The socket exists once the guest runs.
        server.must_say("type `help`");
        server.type_in("serve\n");
        server.must_say("net: the link is down");
        let mut client = self.guest(options, CLIENT);
        client.must_say("type `help`");
        server.must_say("net: the link is up");
        [server, client]
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// `who`, from its shell, pings `whom` and fetches its page.
fn visit(who: &mut Guest, whom: &str) {
    who.type_in(&format!("ping {whom} 5\nfetch {whom}\n"));
    who.must_say(&format!("ping: target={whom} sent=5 received=5"));
    who.must_say("HTTP/1.1 200 OK");
    who.must_say("Hello from a Paravane guest");
    who.must_say("complete=true");
}

#[test]
fn each_pings_and_browses_the_other() {
    for (number, options) in everywhere().iter().enumerate() {
        let wire = Wire::new(&format!("visit-{number}"));
        let [mut server, mut client] = wire.guests(options);
        visit(&mut client, SERVER);
        server.type_in("\x03");
        server.must_say("net: done");
        client.type_in("serve\n");
        client.must_say(&format!("net: address {CLIENT}/24"));
        visit(&mut server, CLIENT);
        client.type_in("\x03");
        client.must_say("net: done");
        client.end("halt\n");
        server.end("halt\n");
    }
}

#[test]
fn one_is_killed_and_the_other_goes_on_and_meets_the_next() {
    for (number, options) in everywhere().iter().enumerate() {
        let wire = Wire::new(&format!("kill-{number}"));
        let [mut server, mut client] = wire.guests(options);
        for _ in 0..2 {
            // In the middle of its work.
            client.type_in(&format!("ping {SERVER} 60000\n"));
            client.must_say("number 10 after");
            client.child.kill().unwrap();
            client.finish();
            server.must_say("net: the link is down");
            client = wire.guest(options, CLIENT);
            server.must_say("net: the link is up");
            visit(&mut client, SERVER);
        }
        // The other way round: without a server, there is nothing to reconnect to.
        client.type_in("serve\n");
        client.must_say("net: address");
        server.child.kill().unwrap();
        server.finish();
        client.must_say("net: the link is down");
        client.type_in("\x03");
        client.must_say("net: done");
        client.type_in(&format!("ping {SERVER} 1\n"));
        client.must_say("net: the link is down");
        client.must_say("sent=1 received=0");
        client.end("halt\n");
    }
}
