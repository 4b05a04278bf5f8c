//! The `key` commands as types.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// One `key` command. KEY is an alias (alias/NAME), a key id, or an ARN of either.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key
    Create(CreateArgs),
    /// All keys, with aliases and states
    List(Json),
    /// All about a key
    Describe(OneKey),
    /// Aliases
    #[command(subcommand)]
    Alias(AliasCommand),
    /// Add a version of key material now; run 'kmsfs rewrap' afterwards to move files to it
    Rotate(OneKey),
    /// Automatic rotation
    #[command(subcommand)]
    Rotation(RotationCommand),
    /// Let the key be used
    Enable(OneKey),
    /// Refuse every use of the key from now on; mounts drop its data keys within a second
    Disable(OneKey),
    /// Schedule the deletion of a key. What it wraps is lost for good when the time is over
    Delete(DeleteArgs),
    /// Take a scheduled deletion back; the key is disabled afterwards
    CancelDeletion(OneKey),
    /// Change the description
    Description(DescriptionArgs),
    /// Key policies
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Tags
    #[command(subcommand)]
    Tags(TagsCommand),
    /// Encrypt up to 4096 bytes
    Encrypt(EncryptArgs),
    /// Decrypt what a key encrypted
    Decrypt(DecryptArgs),
    /// Move a ciphertext to another key, or to the current version of its own
    ReEncrypt(ReEncryptArgs),
    /// Make a data key: prints it wrapped, and plain where asked
    DataKey(DataKeyArgs),
    /// Random bytes from the service
    Random(RandomArgs),
    /// Tell whether a principal may do something with a key, and which statement or grant decides; for the operator
    Why(WhyArgs),
    /// Which versions of a key the volumes of this host use
    Versions(VersionsArgs),
    /// Destroy an old version of a key, once no volume uses it
    RetireVersion(RetireArgs),
}

/// Arguments of `key versions`.
#[derive(Debug, Args)]
pub struct VersionsArgs {
    /// alias/NAME, id or ARN
    pub key: String,
    /// A lower directory to look at besides the volumes and mounts of this host; may be repeated
    #[arg(long, value_name = "LOWER")]
    pub also: Vec<PathBuf>,
    /// JSON output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `key retire-version`.
#[derive(Debug, Args)]
pub struct RetireArgs {
    /// alias/NAME, id or ARN
    pub key: String,
    /// The version, by its id or the beginning of it
    pub version: String,
    /// A lower directory to look at besides the volumes and mounts of this host; may be repeated
    #[arg(long, value_name = "LOWER")]
    pub also: Vec<PathBuf>,
    /// Really do it
    #[arg(long)]
    pub yes: bool,
}

/// Arguments of `key why`.
#[derive(Debug, Args)]
pub struct WhyArgs {
    /// ARN of the principal: a user, a role's session, or an account root
    #[arg(long, value_name = "ARN")]
    pub principal: String,
    /// The action, e.g. kms:Decrypt
    #[arg(long)]
    pub action: String,
    /// alias/NAME, key id, or ARN
    #[arg(long)]
    pub key: String,
    /// Encryption context, may be repeated
    #[arg(long = "context", value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub context: Vec<(String, String)>,
    /// The service that asks for the principal, as kms:ViaService has it
    #[arg(long, value_name = "NAME")]
    pub via_service: Option<String>,
    /// The address it asks from; none for the Unix socket
    #[arg(long, value_name = "ADDRESS")]
    pub source_ip: Option<String>,
    /// JSON output, as the service gives it
    #[arg(long)]
    pub json: bool,
}

/// `--json` alone.
#[derive(Debug, Args)]
pub struct Json {
    /// JSON output, as the service gives it
    #[arg(long)]
    pub json: bool,
}

/// A key and nothing else.
#[derive(Debug, Args)]
pub struct OneKey {
    /// alias/NAME, key id, or ARN
    pub key: String,
    /// JSON output, as the service gives it
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `key create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Give it this alias (alias/NAME)
    #[arg(long)]
    pub alias: Option<String>,
    /// What it is for
    #[arg(long)]
    pub description: Option<String>,
    /// File with its key policy (JSON)
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Tag, may be repeated
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub tags: Vec<(String, String)>,
    /// JSON output, as the service gives it
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `key delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// alias/NAME, key id, or ARN
    pub key: String,
    /// Days until it is gone, 7 to 30
    #[arg(long, default_value_t = 30)]
    pub days: u32,
    /// JSON output, as the service gives it
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `key description`.
#[derive(Debug, Args)]
pub struct DescriptionArgs {
    /// alias/NAME, key id, or ARN
    pub key: String,
    /// The new text
    pub text: String,
}

/// `key alias ...`
#[derive(Debug, Subcommand)]
pub enum AliasCommand {
    /// Give a key an alias
    Create {
        /// alias/NAME
        alias: String,
        /// Key id or ARN, or another alias of the key
        key: String,
    },
    /// Point an alias at another key
    Update {
        /// alias/NAME
        alias: String,
        /// Key id or ARN, or another alias of the key
        key: String,
    },
    /// Remove an alias; the key stays
    Delete {
        /// alias/NAME
        alias: String,
    },
    /// All aliases, or those of a key
    List {
        /// alias/NAME, key id, or ARN
        key: Option<String>,
        /// JSON output, as the service gives it
        #[arg(long)]
        json: bool,
    },
}

/// `key rotation ...`
#[derive(Debug, Subcommand)]
pub enum RotationCommand {
    /// Rotate on its own from now on
    Enable {
        /// alias/NAME, key id, or ARN
        key: String,
        /// Days between rotations, 90 to 2560
        #[arg(long)]
        days: Option<u32>,
    },
    /// No longer rotate on its own
    Disable(OneKey),
    /// Whether and when it rotates
    Status(OneKey),
    /// Rotations so far
    List(OneKey),
}

/// `key policy ...`
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Print the key policy
    Get {
        /// alias/NAME, key id, or ARN
        key: String,
    },
    /// Replace the key policy
    Put {
        /// alias/NAME, key id, or ARN
        key: String,
        /// File with the policy (JSON); - for standard input
        file: PathBuf,
        /// Let a policy in that locks you out
        #[arg(long)]
        bypass_lockout_check: bool,
    },
}

/// `key tags ...`
#[derive(Debug, Subcommand)]
pub enum TagsCommand {
    /// Tags of a key
    List(OneKey),
    /// Add or replace tags
    Add {
        /// alias/NAME, key id, or ARN
        key: String,
        /// Tags
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = parse_pair)]
        tags: Vec<(String, String)>,
    },
    /// Remove tags
    Remove {
        /// alias/NAME, key id, or ARN
        key: String,
        /// Names of tags
        #[arg(required = true, value_name = "KEY")]
        tags: Vec<String>,
    },
}

/// Where bytes come from and go to, and the context that binds them.
#[derive(Debug, Args)]
pub struct Bytes {
    /// Read from this file; - or nothing for standard input
    #[arg(long = "in", value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Write raw bytes to this file, mode 0600; without it, text goes to standard output
    #[arg(long = "out", value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Encryption context, may be repeated
    #[arg(long = "context", value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub context: Vec<(String, String)>,
}

/// Arguments of `key encrypt`.
#[derive(Debug, Args)]
pub struct EncryptArgs {
    /// alias/NAME, key id, or ARN
    pub key: String,
    /// What, where to, bound to what
    #[command(flatten)]
    pub bytes: Bytes,
}

/// Arguments of `key decrypt`. The input is raw or base64.
#[derive(Debug, Args)]
pub struct DecryptArgs {
    /// The key it must be under
    #[arg(long)]
    pub key: Option<String>,
    /// What, where to, bound to what
    #[command(flatten)]
    pub bytes: Bytes,
}

/// Arguments of `key re-encrypt`. The input is raw or base64.
#[derive(Debug, Args)]
pub struct ReEncryptArgs {
    /// The key to go under
    pub key: String,
    /// What, where to, bound to what; the context stays the same
    #[command(flatten)]
    pub bytes: Bytes,
}

/// Arguments of `key data-key`.
#[derive(Debug, Args)]
pub struct DataKeyArgs {
    /// alias/NAME, key id, or ARN
    pub key: String,
    /// Print the plaintext as well
    #[arg(long)]
    pub plaintext: bool,
    /// Encryption context, may be repeated
    #[arg(long = "context", value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub context: Vec<(String, String)>,
}

/// Arguments of `key random`.
#[derive(Debug, Args)]
pub struct RandomArgs {
    /// How many bytes, 1 to 1024
    pub bytes: u32,
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    pair.map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| "KEY=VALUE is wanted".to_owned())
}
