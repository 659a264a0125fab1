//! The UDP tunnels (VXLAN, GENEVE) in the namespace of the interface, and the ports at which they listen.

use crate::offload::coalesce::{TunnelKind, TunnelPorts};
use futures_util::TryStreamExt;
use netlink_packet_route::link::{
    InfoData, InfoGeneve, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::Handle;
use std::collections::BTreeMap;
use std::io::{Error, Result};

/// The tunnels that are up, by the index of their interface.
#[derive(Default)]
pub(super) struct Tunnels(BTreeMap<u32, (TunnelKind, u16)>);

impl Tunnels {
    /// Those that there are now.
    pub(super) async fn query(handle: &Handle) -> Result<Tunnels> {
        let mut tunnels = Tunnels::default();
        let mut links = handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(Error::other)? {
            tunnels.update(&link);
        }
        Ok(tunnels)
    }

    /// Takes the new state of an interface into account. Returns whether that changed anything.
    pub(super) fn update(&mut self, link: &LinkMessage) -> bool {
        // Only as long as it is up it has a socket, and nobody else can have the port.
        let tunnel = listening(link).filter(|_| link.header.flags.contains(LinkFlags::Up));
        match tunnel {
            Some(tunnel) => self.0.insert(link.header.index, tunnel) != Some(tunnel),
            None => self.remove(link),
        }
    }

    /// Takes the end of an interface into account. Returns whether that changed anything.
    pub(super) fn remove(&mut self, link: &LinkMessage) -> bool {
        self.0.remove(&link.header.index).is_some()
    }

    /// The ports of all.
    pub(super) fn ports(&self) -> TunnelPorts {
        let mut ports = TunnelPorts::default();
        self.0.values().for_each(|(kind, port)| ports.add(*kind, *port));
        ports
    }
}

/// The kind of the tunnel that `link` is, and its port.
fn listening(link: &LinkMessage) -> Option<(TunnelKind, u16)> {
    let info = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(info) => Some(info),
        _ => None,
    })?;
    info.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => data.iter().find_map(|data| match data {
            InfoVxlan::Port(port) => Some((TunnelKind::Vxlan, *port)),
            _ => None,
        }),
        LinkInfo::Data(InfoData::Geneve(data)) => data.iter().find_map(|data| match data {
            InfoGeneve::Port(port) => Some((TunnelKind::Geneve, *port)),
            _ => None,
        }),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, up: bool, data: InfoData) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        link.attributes = vec![LinkAttribute::LinkInfo(vec![LinkInfo::Data(data)])];
        link
    }

    fn of(ports: &[(TunnelKind, u16)]) -> TunnelPorts {
        let mut all = TunnelPorts::default();
        ports.iter().for_each(|(kind, port)| all.add(*kind, *port));
        all
    }

    #[test]
    fn a_tunnel_counts_while_it_is_up() {
        let vxlan = |index, up, port| {
            link(index, up, InfoData::Vxlan(vec![InfoVxlan::Id(42), InfoVxlan::Port(port)]))
        };
        let mut tunnels = Tunnels::default();
        assert!(!tunnels.update(&vxlan(3, false, 8472)));
        assert!(tunnels.update(&vxlan(3, true, 8472)) && !tunnels.update(&vxlan(3, true, 8472)));
        assert!(tunnels.update(&link(4, true, InfoData::Geneve(vec![InfoGeneve::Port(6081)]))));
        assert_eq!(tunnels.ports(), of(&[(TunnelKind::Vxlan, 8472), (TunnelKind::Geneve, 6081)]));
        assert!(!tunnels.update(&link(5, true, InfoData::Vlan(vec![]))));
        assert!(tunnels.update(&vxlan(3, false, 8472)));
        assert!(tunnels.remove(&link(4, true, InfoData::Geneve(vec![]))));
        assert_eq!(tunnels.ports(), TunnelPorts::default());
    }

    #[test]
    fn two_tunnels_at_one_port_are_one() {
        let mut tunnels = Tunnels::default();
        for index in 1..9 {
            tunnels.update(&link(index, true, InfoData::Vxlan(vec![InfoVxlan::Port(4789)])));
        }
        tunnels.update(&link(9, true, InfoData::Vxlan(vec![InfoVxlan::Port(8472)])));
        assert_eq!(tunnels.ports(), of(&[(TunnelKind::Vxlan, 4789), (TunnelKind::Vxlan, 8472)]));
    }
}
