//! Who holds a TCP port of this host: for an error that names it.

use std::fs;
use std::net::{SocketAddr, TcpListener};

/// `None` if the address can be bound; else who is in the way, as far as that can be seen.
pub fn holder(address: SocketAddr) -> Option<String> {
    let error = TcpListener::bind(address).err()?;
    if error.kind() != std::io::ErrorKind::AddrInUse {
        return Some(error.to_string());
    }
    let seen = listening_process(address).map(|(pid, name)| format!("process {pid} ({name})"));
    Some(seen.unwrap_or_else(|| "a process of another user".into()))
}

/// The process that listens at an address of this host, if it can be seen.
pub fn listener(address: SocketAddr) -> Option<u32> {
    listening_process(address).map(|(pid, _)| pid)
}

/// The process that listens at an address and its name, by /proc: the socket's inode, then whose file it is.
fn listening_process(address: SocketAddr) -> Option<(u32, String)> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|path| listening_inode(path, address))?;
    let socket = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?;
    processes.filter_map(Result::ok).find_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let holds = fs::read_dir(process.path().join("fd"))
            .ok()?
            .filter_map(Result::ok)
            .any(|file| fs::read_link(file.path()).is_ok_and(|target| target.to_string_lossy() == socket));
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        holds.then(|| (pid, name.trim().to_owned()))
    })
}

fn listening_inode(path: &str, address: SocketAddr) -> Option<String> {
    const LISTEN: &str = "0A";
    let SocketAddr::V4(v4) = address else { return None };
    // The kernel prints the address as a number whose bytes are in memory order, an IPv4 one at the end of an IPv6 one.
    let ours = format!("{:08X}", u32::from_le_bytes(v4.ip().octets()));
    let table = fs::read_to_string(path).ok()?;
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (ip, port) = fields.get(1)?.split_once(':')?;
        let here = ip.ends_with(&ours) || ip.bytes().all(|digit| digit == b'0');
        let matches = here && u16::from_str_radix(port, 16) == Ok(address.port()) && fields.get(3) == Some(&LISTEN);
        matches.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
    })
}
