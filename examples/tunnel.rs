//! A tunnel in ten lines, until Ctrl-C; PRIVATE_KEY in the environment is its private key.
//!
//! ```sh
//! PRIVATE_KEY=$(wg genkey) cargo run --example tunnel wg0 51820 "$PEER_KEY" 192.0.2.1:51820 10.0.0.0/8
//! ip address add 10.0.0.2/24 dev wg0 && ip link set wg0 up
//! ```

use ringtun::{Change, PeerChange, Tunnel};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().collect();
    let [_, name, port, peer, endpoint, prefix] = words.as_slice() else {
        return Err("expected NAME PORT PEER-KEY PEER-ENDPOINT PREFIX".into());
    };
    let peer = PeerChange::new(peer.parse()?).endpoint(endpoint.parse()?).allow(prefix.parse()?);
    let key = std::env::var("PRIVATE_KEY")?.parse()?;
    let change = Change::new().private_key(key).listen_port(port.parse()?).peer(peer);
    let tunnel = Tunnel::builder(name).configure(change).start()?;
    Ok(tunnel.wait()?)
}
