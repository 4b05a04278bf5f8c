//! SQLite and PostgreSQL: transactions that were committed must be there, whole and in order.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::Connection;

use crate::bytes::Random;
use crate::ledger::{Ledger, Record, State};
use crate::{Load, Outcome};

/// Most bytes of a row.
const BODY_MAX: usize = 3000;
/// Rows that stay: each transaction removes the one that is so many behind.
const WINDOW: u64 = 500;

fn body(number: u64) -> String {
    let mut random = Random::new(number);
    (0..=random.below(BODY_MAX)).map(|_| char::from(b'a' + random.below(26) as u8)).collect()
}

/// A database and how many transactions it has; transaction n adds row n, removes an old one and counts on in another
/// table.
#[derive(Clone)]
pub struct Rows {
    base: Base,
    count: u64,
}

#[derive(Clone)]
enum Base {
    Sqlite(PathBuf),
    Postgres(Cluster),
}

impl State for Rows {
    type Op = ();

    fn apply(&mut self, (): &()) {
        self.count += 1;
    }

    fn check(&self, later: &[()], root: &Path) -> Outcome<u64> {
        let (rows, counted) = match &self.base {
            Base::Sqlite(name) => sqlite_rows(&root.join(name))?,
            Base::Postgres(cluster) => cluster.rows(root)?,
        };
        let most = self.count + later.len() as u64;
        let (least, what) = (self.count, self.base.name());
        if counted < least || counted > most || rows.len() as u64 != counted.min(WINDOW) {
            let rows = rows.len();
            return Err(format!("{what}: {counted} transactions, not {least} to {most}; {rows} rows").into());
        }
        for (number, (id, found)) in (counted.saturating_sub(WINDOW) + 1..).zip(&rows) {
            if *id != number || *found != body(number) {
                return Err(format!("{what}: row {number} is not what was committed").into());
            }
        }
        Ok(rows.len() as u64)
    }
}

impl Base {
    fn name(&self) -> String {
        match self {
            Base::Sqlite(name) => name.display().to_string(),
            Base::Postgres(_) => "postgres".into(),
        }
    }
}

type Found = (Vec<(u64, String)>, u64);

fn sqlite_rows(path: &Path) -> Outcome<Found> {
    let told = |e: rusqlite::Error| format!("{}: {e}", path.display());
    let db = Connection::open(path)?;
    let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).map_err(told)?;
    if check != "ok" {
        return Err(format!("{}: {check}", path.display()).into());
    }
    let mut query = db.prepare("SELECT id, body FROM t ORDER BY id").map_err(told)?;
    let rows = query.query_map([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?))).map_err(told)?;
    let rows = rows.collect::<Result<Vec<_>, _>>().map_err(told)?;
    let counted: i64 = db.query_row("SELECT n FROM counted", [], |row| row.get(0)).map_err(told)?;
    Ok((rows, counted as u64))
}

pub struct SqliteLoad {
    db: Connection,
    ledger: Arc<Mutex<Ledger<Rows>>>,
}

impl SqliteLoad {
    /// In write-ahead mode, or with a rollback journal whose removal is synced too.
    pub fn new(root: &Path, write_ahead: bool) -> Outcome<Self> {
        let name = if write_ahead { "wal.db" } else { "rollback.db" };
        let db = Connection::open(root.join(name))?;
        let (mode, sync) = if write_ahead { ("WAL", "FULL") } else { ("DELETE", "EXTRA") };
        db.pragma_update(None, "journal_mode", mode)?;
        db.pragma_update(None, "synchronous", sync)?;
        db.pragma_update(None, "wal_autocheckpoint", 40)?;
        db.execute_batch(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, body TEXT); CREATE TABLE counted(n INTEGER); \
             INSERT INTO counted VALUES (0);",
        )?;
        std::fs::File::open(root)?.sync_all()?;
        let ledger = Ledger::new(Rows { base: Base::Sqlite(name.into()), count: 0 });
        Ok(Self { db, ledger: Arc::new(Mutex::new(ledger)) })
    }
}

impl Load for SqliteLoad {
    fn step(&mut self, _random: &mut Random) -> Outcome<()> {
        let number = self.ledger.lock().current().count + 1;
        self.ledger.lock().begin(());
        let transaction = self.db.transaction()?;
        transaction.execute("INSERT INTO t VALUES (?1, ?2)", (number as i64, body(number)))?;
        transaction.execute("DELETE FROM t WHERE id = ?1", [number as i64 - WINDOW as i64])?;
        transaction.execute("UPDATE counted SET n = n + 1", ())?;
        transaction.commit()?;
        let mut ledger = self.ledger.lock();
        let mark = ledger.mark();
        ledger.synced(mark);
        Ok(())
    }

    fn records(&self) -> Vec<Arc<dyn Record>> {
        vec![self.ledger.clone()]
    }
}

/// A PostgreSQL cluster: where its programs are, and where its sockets go. The data is in `pg/data`.
#[derive(Clone)]
pub struct Cluster {
    pub programs: PathBuf,
    pub sockets: PathBuf,
}

impl Cluster {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(self.programs.join(program));
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    fn control(&self, data: &Path, sockets: &Path, how: &[&str]) -> Outcome<()> {
        let options = format!(
            "-c listen_addresses='' -c unix_socket_directories={} -c shared_buffers=4MB -c max_wal_size=32MB \
             -c checkpoint_timeout=30s -c wal_recycle=on",
            sockets.display()
        );
        let mut command = self.command("pg_ctl");
        command.arg("-D").arg(data).args(["-w", "-s", "-t", "120", "-l"]).arg(sockets.join("log"));
        let status = command.arg("-o").arg(options).args(how).status()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("pg_ctl {how:?} on {} failed", data.display()).into())
        }
    }

    fn psql(&self, sockets: &Path) -> Command {
        let mut command = self.command("psql");
        command.arg("-h").arg(sockets).args(["-qAt", "-v", "ON_ERROR_STOP=1", "postgres"]);
        command
    }

    fn rows(&self, root: &Path) -> Outcome<Found> {
        let data = root.join("pg/data");
        let sockets = self.sockets.join("cut");
        make_owned(&sockets)?;
        // The server that it names lives on, beside the cut.
        let _ = std::fs::remove_file(data.join("postmaster.pid"));
        self.control(&data, &sockets, &["start"])?;
        let query = "SELECT n FROM counted; SELECT id, body FROM t ORDER BY id";
        let output = self.psql(&sockets).arg("-c").arg(query).output();
        self.control(&data, &sockets, &["-m", "fast", "stop"])?;
        let output = output?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        let out = String::from_utf8_lossy(&output.stdout);
        let mut lines = out.lines();
        let counted = lines.next().unwrap_or_default().parse()?;
        let row = |line: &str| -> Outcome<(u64, String)> {
            let (id, body) = line.split_once('|').ok_or("a row without body")?;
            Ok((id.parse()?, body.to_owned()))
        };
        Ok((lines.map(row).collect::<Outcome<_>>()?, counted))
    }
}

fn make_owned(dir: &Path) -> Outcome<()> {
    std::fs::create_dir_all(dir)?;
    let status = Command::new("chown").arg("postgres").arg(dir).status()?;
    if status.success() { Ok(()) } else { Err("chown failed".into()) }
}

pub struct PostgresLoad {
    cluster: Cluster,
    data: PathBuf,
    session: Child,
    words: ChildStdin,
    answers: BufReader<ChildStdout>,
    ledger: Arc<Mutex<Ledger<Rows>>>,
}

impl PostgresLoad {
    pub fn new(root: &Path, cluster: Cluster) -> Outcome<Self> {
        let (dir, live) = (root.join("pg"), cluster.sockets.join("live"));
        make_owned(&dir)?;
        make_owned(&live)?;
        let data = dir.join("data");
        let mut init = cluster.command("initdb");
        let status = init
            .arg("-D")
            .arg(&data)
            .args(["-A", "trust", "--data-checksums"])
            .stdout(Stdio::null())
            .status()?;
        if !status.success() {
            return Err("initdb failed".into());
        }
        cluster.control(&data, &live, &["start"])?;
        let tables = "CREATE TABLE t(id BIGINT PRIMARY KEY, body TEXT); CREATE TABLE counted(n BIGINT); \
                      INSERT INTO counted VALUES (0);";
        cluster.psql(&live).arg("-c").arg(tables).status()?;
        let mut session = cluster.psql(&live).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let words = session.stdin.take().ok_or("no pipe")?;
        let answers = BufReader::new(session.stdout.take().ok_or("no pipe")?);
        let ledger = Ledger::new(Rows { base: Base::Postgres(cluster.clone()), count: 0 });
        Ok(Self { cluster, data, session, words, answers, ledger: Arc::new(Mutex::new(ledger)) })
    }
}

impl Load for PostgresLoad {
    fn step(&mut self, _random: &mut Random) -> Outcome<()> {
        let number = self.ledger.lock().current().count + 1;
        self.ledger.lock().begin(());
        writeln!(
            self.words,
            "BEGIN; INSERT INTO t VALUES ({number}, '{}'); DELETE FROM t WHERE id = {number} - {WINDOW}; \
             UPDATE counted SET n = n + 1; COMMIT; SELECT 'done {number}';",
            body(number)
        )?;
        self.words.flush()?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.trim_end() != format!("done {number}") {
            return Err(format!("the server says '{line}'").into());
        }
        let mut ledger = self.ledger.lock();
        let mark = ledger.mark();
        ledger.synced(mark);
        Ok(())
    }

    fn records(&self) -> Vec<Arc<dyn Record>> {
        vec![self.ledger.clone()]
    }

    fn rarely(&self) -> bool {
        true
    }
}

impl Drop for PostgresLoad {
    fn drop(&mut self) {
        let _ = self.session.kill();
        let _ = self.session.wait();
        let _ = self.cluster.control(
            &self.data,
            &self.cluster.sockets.join("live"),
            &["-m", "immediate", "stop"],
        );
    }
}
