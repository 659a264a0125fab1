//! Where a configuration is found, who may read it, and how it is replaced.

use super::{Config, ConfigError, ConfigErrors, Document, Salvage, Warning, lint};
use rustix::fs::{FlockOperation, flock};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{Error, ErrorKind, Result, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The directory of the configurations that are given by their interface's name.
pub const DIRECTORY: &str = "/etc/wireguard";
/// Longest interface name: IFNAMSIZ less its NUL.
const MAX_NAME: usize = 15;

/// A configuration's file, and the interface that it is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The file's path. Symbolic links are followed where the file exists.
    pub file: PathBuf,
    /// The interface's name: the file's name without `.conf`.
    pub interface: String,
}

/// What to do about a file that everyone may read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Permissions {
    /// Warn of it.
    Warn,
    /// Refuse to use it.
    Refuse,
}

/// A configuration's file that was read and understood.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Where the file lies, and its interface.
    pub place: Place,
    /// The file's lines.
    pub document: Document,
    /// The file's meaning.
    pub config: Config,
    /// What is odd about the file.
    pub warnings: Vec<Warning>,
}

/// Why a file was not read.
#[derive(Debug)]
pub enum LoadError {
    /// What was given is neither an interface's name nor a file `NAME.conf`.
    Name(String),
    /// The file of this path cannot be read.
    File(PathBuf, Error),
    /// Everyone may read the file of this path, and the caller refuses such files.
    WorldReadable(PathBuf),
    /// The file's content cannot be understood.
    Content(ConfigErrors),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::Name(given) if too_long(given).is_some() => write!(
                f,
                "`{0}' has {1} characters: expected at most {MAX_NAME}, as the kernel lets interfaces have",
                too_long(given).unwrap_or_default(),
                too_long(given).unwrap_or_default().len()
            ),
            LoadError::Name(given) => write!(
                f,
                "`{given}` names no configuration: expected an interface's name (at most {MAX_NAME} of a-z A-Z 0-9 _ = + . -) or a file NAME.conf"
            ),
            LoadError::File(path, error) if is_missing_name(path, error) => match configured().as_slice() {
                [] => write!(f, "there is no {}, nor any other configuration in {DIRECTORY}", path.display()),
                names => write!(
                    f,
                    "there is no {}; in {DIRECTORY} there are: {}",
                    path.display(),
                    names.join(", ")
                ),
            },
            LoadError::File(path, error) => write!(f, "{}: {error}", path.display()),
            LoadError::WorldReadable(path) => {
                let file = path.display();
                write!(f, "{file}: the keys in it are readable by everyone; mend that with: chmod 600 {file}")
            }
            LoadError::Content(errors) => errors.fmt(f),
        }
    }
}

impl std::error::Error for LoadError {}

/// Whether a configuration is missing that was asked for by its interface's name, with nothing like it elsewhere.
fn is_missing_name(path: &Path, error: &Error) -> bool {
    // An error with a hint has no number.
    error.raw_os_error() == Some(rustix::io::Errno::NOENT.raw_os_error())
        && path.parent() == Some(Path::new(DIRECTORY))
}

/// The names of the configurations in [`DIRECTORY`], sorted. There are none where it cannot be read.
pub fn configured() -> Vec<String> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_suffix(".conf").map(str::to_owned);
    let mut names: Vec<String> = entries.filter_map(name).filter(|name| is_interface_name(name)).collect();
    names.sort();
    names
}

/// Adds to the error what was probably meant, where a file's name was given as if it were the interface's, or the
/// other way round.
fn meant(given: &str, error: Error) -> Error {
    if error.kind() != ErrorKind::NotFound || !is_interface_name(given) {
        return error;
    }
    let here = format!("./{given}.conf");
    match given.strip_suffix(".conf") {
        Some(name) => Error::new(
            ErrorKind::NotFound,
            format!("{error}: expected `{name}', or `./{given}' for a file in this directory"),
        ),
        None if Path::new(&here).exists() => Error::new(
            ErrorKind::NotFound,
            format!("{error}: expected `{here}' for the file in this directory"),
        ),
        None => error,
    }
}

fn is_interface_name(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'=' | b'+' | b'.' | b'-');
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(good)
}

/// The interface's name in `given`, where it is good but for its length.
fn too_long(given: &str) -> Option<&str> {
    let name = Path::new(given).file_name()?.to_str()?;
    let name = name.strip_suffix(".conf").unwrap_or(name);
    (name.len() > MAX_NAME
        && is_interface_name(name.get(..MAX_NAME)?)
        && is_interface_name(name.get(MAX_NAME..)?.get(..1)?))
    .then_some(name)
}

impl Place {
    /// Finds the file for what a person gave. `NAME` stands for DIRECTORY/NAME.conf; anything else is a path that ends in
    /// NAME.conf. A name wins over a file of that name in the working directory, as for wg-quick.
    ///
    /// # Errors
    ///
    /// [`LoadError::Name`] for what is neither a name nor such a path, [`LoadError::File`] where there is no such file.
    pub fn find(given: &str) -> std::result::Result<Place, LoadError> {
        Place::find_in(Path::new(DIRECTORY), given)
    }

    /// Does as [`Self::find`], with names looked up in `directory`.
    ///
    /// # Errors
    ///
    /// As for [`Self::find`].
    pub fn find_in(directory: &Path, given: &str) -> std::result::Result<Place, LoadError> {
        let Place { file, interface } = Place::named_in(directory, given)?;
        let file = fs::canonicalize(&file).map_err(|error| LoadError::File(file, meant(given, error)))?;
        Ok(Place { file, interface })
    }

    /// Does as [`Self::find`], whether there is such a file or not.
    ///
    /// # Errors
    ///
    /// [`LoadError::Name`] for what is neither a name nor such a path.
    pub fn named(given: &str) -> std::result::Result<Place, LoadError> {
        Place::named_in(Path::new(DIRECTORY), given)
    }

    fn named_in(directory: &Path, given: &str) -> std::result::Result<Place, LoadError> {
        let path = match is_interface_name(given) {
            true => directory.join(format!("{given}.conf")),
            false => PathBuf::from(given),
        };
        let name =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".conf"));
        let interface = match name {
            Some(name) if is_interface_name(name) => name.to_owned(),
            _ => return Err(LoadError::Name(given.to_owned())),
        };
        Ok(Place { file: path, interface })
    }

    /// What can be read of a file that has mistakes; nothing where there is no file.
    pub fn salvage(&self) -> Salvage {
        let bytes = fs::read(&self.file).map(zeroize::Zeroizing::new);
        bytes.map(|bytes| Document::new(&bytes).salvage()).unwrap_or_default()
    }

    /// Reads the file, checks it and understands it.
    ///
    /// # Errors
    ///
    /// Where the file cannot be read, may be read by everyone and `permissions` refuse that, or cannot be understood.
    pub fn load(self, permissions: Permissions) -> std::result::Result<Loaded, LoadError> {
        let failed = |error| LoadError::File(self.file.clone(), error);
        let exposed = is_world_accessible(&self.file).map_err(failed)?;
        // A container's secret is such a file. Nobody here can mend its mode, and so to refuse would be for ever.
        let is_fixed = exposed && is_on_read_only_mount(&self.file).map_err(failed)?;
        if exposed && !is_fixed && permissions == Permissions::Refuse {
            return Err(LoadError::WorldReadable(self.file));
        }
        let bytes = zeroize::Zeroizing::new(fs::read(&self.file).map_err(failed)?);
        let document = Document::new(&bytes);
        let (config, mut warnings) = match document.parse() {
            Ok(parsed) => parsed,
            Err(errors) => return Err(LoadError::Content(self.errors(errors))),
        };
        if exposed {
            let file = self.file.clone();
            let warning = if is_fixed { Warning::WorldReadableMount } else { Warning::WorldReadable(file) };
            warnings.insert(0, warning);
        }
        warnings.extend(lint::broken(&document, &config));
        warnings.sort_by_key(Warning::line);
        Ok(Loaded { place: self, document, config, warnings })
    }

    /// These errors as this file's.
    pub fn errors(&self, errors: Vec<ConfigError>) -> ConfigErrors {
        ConfigErrors { file: self.file.clone(), errors }
    }
}

/// Whether everyone may read the file. As for wg-quick, both the file and its directory must let others in.
fn is_world_accessible(file: &Path) -> Result<bool> {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(fs::metadata(file)?.mode() & fs::metadata(directory)?.mode() & 0o007 != 0)
}

fn is_on_read_only_mount(file: &Path) -> Result<bool> {
    Ok(rustix::fs::statvfs(file)?.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

/// Replaces `path` whole or not at all: a new file of mode 0600 beside it is written, synced, and renamed over it.
///
/// # Errors
///
/// Where the new file cannot be written or renamed, which leaves `path` as it was, or its directory cannot be synced.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().ok_or_else(|| Error::other("a file's name is needed"))?.to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    // A process of this number may have been killed here before.
    let _ = fs::remove_file(&temporary);
    let written =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        });
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary); // it may not be there; the first error is the one to tell
        return Err(error);
    }
    directory_of(path)?.sync_all()
}

fn directory_of(path: &Path) -> Result<File> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)
}

/// A lock that keeps other ringtun processes from changing the files of a directory, until it is dropped. It is on the
/// directory, since the files themselves are replaced.
#[derive(Debug)]
pub struct FileLock {
    _directory: File,
}

impl FileLock {
    /// Waits for the lock of the directory of `file`, and takes it.
    ///
    /// # Errors
    ///
    /// Where the directory cannot be opened or locked.
    pub fn take(file: &Path) -> Result<FileLock> {
        let directory = directory_of(file)?;
        flock(&directory, FlockOperation::LockExclusive)?;
        Ok(FileLock { _directory: directory })
    }
}
