//! Who holds a TCP port of this host: for an error that names it.

use std::fs;
use std::net::{SocketAddr, TcpListener};

/// `None` if the address can be bound; else who is in the way, as far as that can be seen.
pub fn holder(address: SocketAddr) -> Option<String> {
    let error = TcpListener::bind(address).err()?;
    if error.kind() != std::io::ErrorKind::AddrInUse {
        return Some(error.to_string());
    }
    Some(listening_process(address.port()).unwrap_or_else(|| "a process of another user".into()))
}

/// The process that listens on a port, by /proc: the socket's inode, then whose file it is.
fn listening_process(port: u16) -> Option<String> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|path| listening_inode(path, port))?;
    let socket = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?;
    processes.filter_map(Result::ok).find_map(|process| {
        let holds = fs::read_dir(process.path().join("fd"))
            .ok()?
            .filter_map(Result::ok)
            .any(|file| fs::read_link(file.path()).is_ok_and(|target| target.to_string_lossy() == socket));
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        holds.then(|| format!("process {} ({})", process.file_name().to_string_lossy(), name.trim()))
    })
}

fn listening_inode(path: &str, port: u16) -> Option<String> {
    const LISTEN: &str = "0A";
    let table = fs::read_to_string(path).ok()?;
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let local = fields.get(1)?.rsplit(':').next()?;
        let matches = u16::from_str_radix(local, 16) == Ok(port) && fields.get(3) == Some(&LISTEN);
        matches.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
    })
}
