"""nbgrader's settings for the labs in this folder; `nbgrader …` reads them when it is started here."""

c = get_config()  # noqa: F821  given by nbgrader

c.Execute.timeout = 300  # seconds a cell may take; the first one imports PyTorch, and a busy machine is slow at that
