//! Finds the other programs of the workspace.

use std::{
    env::{self, consts::EXE_SUFFIX},
    path::{Path, PathBuf},
};

use super::error::DemoError;

/// The programs that the demo starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// `tributary-coordinator`.
    pub coordinator: PathBuf,
    /// `tributary-agent`.
    pub agent: PathBuf,
}

impl Binaries {
    /// Looks beside this executable first, so that binaries of one build go together, then on PATH.
    ///
    /// # Errors
    /// [`DemoError::MissingProgram`] naming the program and how to build it.
    pub fn find() -> Result<Self, DemoError> {
        let own = env::current_exe()
            .map_err(|source| DemoError::File { path: "this executable".into(), source })?;
        let path = env::var_os("PATH").unwrap_or_default();
        let folders: Vec<PathBuf> =
            own.parent().map(Path::to_owned).into_iter().chain(env::split_paths(&path)).collect();
        let find = |program| {
            find_in(&folders, program)
                .ok_or_else(|| DemoError::MissingProgram { program, beside: own.clone() })
        };
        Ok(Self { coordinator: find("tributary-coordinator")?, agent: find("tributary-agent")? })
    }
}

fn find_in(folders: &[PathBuf], program: &str) -> Option<PathBuf> {
    let name = format!("{program}{EXE_SUFFIX}");
    folders.iter().map(|folder| folder.join(&name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_folder_with_the_program_wins() {
        let (near, far) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folders = [near.path().to_owned(), far.path().to_owned()];
        assert_eq!(find_in(&folders, "agent"), None);
        let name = format!("agent{EXE_SUFFIX}");
        std::fs::write(far.path().join(&name), "").unwrap();
        assert_eq!(find_in(&folders, "agent"), Some(far.path().join(&name)));
        std::fs::write(near.path().join(&name), "").unwrap();
        assert_eq!(find_in(&folders, "agent"), Some(near.path().join(&name)));
    }
}
