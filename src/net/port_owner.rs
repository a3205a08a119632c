//! Who listens on a TCP port of this machine, so that "address in use" can name the program.

use std::fs;

/// A process that holds a listening socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortOwner {
    pub pid: u32,
    pub command: String,
}

/// The process that listens on `port`, as far as `/proc` shows it to this user.
pub fn port_owner(port: u16) -> Option<PortOwner> {
    let inodes: Vec<u64> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| listening_inodes(&table, port))
        .collect();
    let wanted: Vec<String> = inodes
        .iter()
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if wanted.is_empty() {
        return None;
    }
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        let holds = descriptors
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .any(|target| {
                wanted
                    .iter()
                    .any(|name| target.as_os_str() == name.as_str())
            });
        if holds {
            let command = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Some(PortOwner {
                pid,
                command: command.trim().escape_default().to_string(),
            });
        }
    }
    None
}

/// The socket inodes of one `/proc/net/tcp` table that listen (state 0A) on `port`.
fn listening_inodes(table: &str, port: u16) -> Vec<u64> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let local = fields.nth(1)?;
            let state = fields.nth(1)?;
            let inode = fields.nth(5)?;
            let (_, local_port) = local.rsplit_once(':')?;
            let listens = state == "0A" && u16::from_str_radix(local_port, 16).ok()? == port;
            if listens { inode.parse().ok() } else { None }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_table_of_the_kernel() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:4965 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0\n\
             1: 0100007F:4965 0100007F:9999 01 00000000:00000000 00:00000000 00000000  1000        0 4343 1 0\n\
             2: garbage\n";
        assert_eq!(listening_inodes(table, 0x4965), [4242]);
        assert!(listening_inodes(table, 1).is_empty());
    }

    #[test]
    fn finds_this_very_process() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(
            port_owner(port).map(|owner| owner.pid),
            Some(std::process::id())
        );
    }
}
