"""Numbered steps from one schema to the next; `PRAGMA user_version` says how far a file is.

A step that was released is never edited. A file from a later release is refused: going back
would lose what it holds.
"""

from sqlalchemy import Connection

from ciworker.errors import StoreRefused

STEPS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE job (
            id VARCHAR NOT NULL PRIMARY KEY,
            status VARCHAR NOT NULL,
            reason VARCHAR,
            message VARCHAR,
            exit_code INTEGER,
            project VARCHAR NOT NULL,
            spec JSON NOT NULL,
            source JSON NOT NULL,
            priority INTEGER NOT NULL,
            memory INTEGER NOT NULL,
            attempt INTEGER NOT NULL,
            retry_of VARCHAR,
            container_id VARCHAR,
            created_at BIGINT NOT NULL,
            started_at BIGINT,
            finished_at BIGINT,
            deadline_at BIGINT,
            not_before BIGINT,
            starting_at BIGINT,
            sent_at BIGINT,
            cancel_by VARCHAR,
            stop_cause VARCHAR,
            stop_at BIGINT,
            stop_by VARCHAR,
            kills JSON NOT NULL,
            oom BOOLEAN NOT NULL,
            engine_restarted_at BIGINT,
            log_complete BOOLEAN NOT NULL,
            log_incomplete BOOLEAN NOT NULL,
            keep_until BIGINT,
            mark_token VARCHAR NOT NULL,
            tar_length BIGINT NOT NULL
        )
        """,
        "CREATE INDEX job_queue ON job (status, priority DESC, id) WHERE status = 'queued'",
        "CREATE INDEX job_status ON job (status, id)",
        "CREATE INDEX job_project ON job (project, id)",
        """
        CREATE TABLE job_event (
            id INTEGER NOT NULL PRIMARY KEY,
            job_id VARCHAR NOT NULL REFERENCES job (id) ON DELETE CASCADE,
            at BIGINT NOT NULL,
            from_status VARCHAR,
            to_status VARCHAR NOT NULL,
            reason VARCHAR,
            message VARCHAR
        )
        """,
        "CREATE INDEX job_event_job ON job_event (job_id, id)",
        """
        CREATE TABLE log_chunk (
            job_id VARCHAR NOT NULL REFERENCES job (id) ON DELETE CASCADE,
            first INTEGER NOT NULL,
            count INTEGER NOT NULL,
            attempt INTEGER NOT NULL,
            total_bytes BIGINT NOT NULL,
            out_lines INTEGER NOT NULL,
            out_frames INTEGER NOT NULL,
            err_lines INTEGER NOT NULL,
            err_frames INTEGER NOT NULL,
            runs BLOB NOT NULL,
            data BLOB NOT NULL,
            PRIMARY KEY (job_id, first)
        )
        """,
        """
        CREATE TABLE submission (
            token_id VARCHAR NOT NULL,
            "key" VARCHAR NOT NULL,
            job_id VARCHAR NOT NULL REFERENCES job (id) ON DELETE CASCADE,
            at BIGINT NOT NULL,
            PRIMARY KEY (token_id, "key")
        )
        """,
        """
        CREATE TABLE token (
            id VARCHAR NOT NULL PRIMARY KEY,
            name VARCHAR NOT NULL,
            role VARCHAR NOT NULL,
            digest BLOB NOT NULL,
            created_at BIGINT NOT NULL,
            revoked_at BIGINT
        )
        """,
        'CREATE TABLE meta ("key" VARCHAR NOT NULL PRIMARY KEY, value VARCHAR NOT NULL)',
    ),
    (
        "ALTER TABLE job ADD COLUMN kind VARCHAR NOT NULL DEFAULT 'job'",
        "ALTER TABLE job ADD COLUMN environment VARCHAR",
        "ALTER TABLE job ADD COLUMN waits BOOLEAN NOT NULL DEFAULT 0",
        "ALTER TABLE job ADD COLUMN build VARCHAR",
        "DROP INDEX job_queue",
        """
        CREATE INDEX job_queue ON job (kind, priority DESC, id)
        WHERE status = 'queued' AND waits = 0
        """,
        """
        CREATE INDEX job_waiting ON job (environment, id)
        WHERE status = 'queued' AND waits = 1
        """,
        """
        CREATE INDEX job_environment ON job (kind, environment)
        WHERE status IN ('queued', 'starting', 'running') AND environment IS NOT NULL
        """,
        "CREATE INDEX log_chunk_setup ON log_chunk (job_id, first) WHERE attempt < 0",
        """
        CREATE TABLE environment (
            "key" VARCHAR NOT NULL PRIMARY KEY,
            status VARCHAR NOT NULL,
            project VARCHAR NOT NULL,
            image VARCHAR NOT NULL,
            image_id VARCHAR NOT NULL,
            commands JSON NOT NULL,
            inputs JSON NOT NULL,
            operator VARCHAR NOT NULL,
            created_at BIGINT NOT NULL,
            single BOOLEAN NOT NULL,
            build VARCHAR,
            good VARCHAR,
            builds INTEGER NOT NULL,
            attempts INTEGER NOT NULL,
            layer VARCHAR,
            bytes BIGINT NOT NULL,
            build_seconds FLOAT NOT NULL,
            ready_at BIGINT,
            last_used_at BIGINT,
            hits INTEGER NOT NULL,
            misses INTEGER NOT NULL,
            exit_code INTEGER,
            message VARCHAR,
            removal VARCHAR
        )
        """,
        "CREATE INDEX environment_project ON environment (project, build)",
    ),
    (
        """
        CREATE TABLE session (
            id VARCHAR NOT NULL PRIMARY KEY,
            token_id VARCHAR NOT NULL REFERENCES token (id) ON DELETE CASCADE,
            parent VARCHAR REFERENCES session (id) ON DELETE CASCADE,
            digest BLOB NOT NULL,
            created_at BIGINT NOT NULL,
            expires_at BIGINT NOT NULL
        )
        """,
        "CREATE INDEX session_token ON session (token_id, created_at)",
        "CREATE INDEX session_parent ON session (parent)",
    ),
    (
        "ALTER TABLE job ADD COLUMN log_packed BOOLEAN NOT NULL DEFAULT 0",
        "ALTER TABLE job ADD COLUMN removed BOOLEAN NOT NULL DEFAULT 0",
        "ALTER TABLE log_chunk ADD COLUMN packed BOOLEAN NOT NULL DEFAULT 0",
        "CREATE INDEX job_removed ON job (status, id) WHERE removed = 1",
        "CREATE INDEX job_finished ON job (finished_at, id) WHERE finished_at IS NOT NULL",
        """
        CREATE INDEX job_unpacked ON job (finished_at, id)
        WHERE finished_at IS NOT NULL AND log_packed = 0
        """,
        """
        CREATE INDEX job_backoff ON job (status, not_before)
        WHERE status = 'queued' AND waits = 0 AND not_before IS NOT NULL
        """,
        """
        CREATE INDEX job_cancelled ON job (status, id)
        WHERE status = 'queued' AND cancel_by IS NOT NULL
        """,
        "CREATE INDEX submission_job ON submission (job_id)",
        "CREATE INDEX submission_at ON submission (at)",
    ),
    (
        "ALTER TABLE job ADD COLUMN container JSON",
        """
        CREATE TABLE webhook_delivery (
            id VARCHAR NOT NULL PRIMARY KEY,
            kind VARCHAR NOT NULL,
            endpoint VARCHAR NOT NULL,
            type VARCHAR NOT NULL,
            job VARCHAR,
            body BLOB NOT NULL,
            created_at BIGINT NOT NULL,
            since BIGINT NOT NULL,
            state VARCHAR NOT NULL,
            tries INTEGER NOT NULL,
            next_try_at BIGINT,
            tried_at BIGINT,
            answer INTEGER,
            error VARCHAR
        )
        """,
        """
        CREATE INDEX webhook_delivery_pending ON webhook_delivery (kind, endpoint, next_try_at)
        WHERE state = 'pending'
        """,
        "CREATE INDEX webhook_delivery_state ON webhook_delivery (state, id)",
    ),
    ("ALTER TABLE job ADD COLUMN granted JSON NOT NULL DEFAULT '{}'",),
    (
        "ALTER TABLE token ADD COLUMN expires_at BIGINT",
        "ALTER TABLE token ADD COLUMN last_used_at BIGINT",
        """
        CREATE TABLE audit (
            id INTEGER NOT NULL PRIMARY KEY,
            at BIGINT NOT NULL,
            token_id VARCHAR,
            "by" VARCHAR NOT NULL,
            address VARCHAR NOT NULL,
            action VARCHAR NOT NULL,
            subject VARCHAR NOT NULL,
            detail VARCHAR NOT NULL
        )
        """,
        "CREATE INDEX audit_at ON audit (at, id)",
    ),
)


VERSION = "PRAGMA user_version"
FIRST_NAME = "SELECT name FROM sqlite_schema LIMIT 1"


def check_origin(version: int, name: str | None) -> None:
    """See that a file is ours to read, by its version and the first name in its schema.

    Raises:
        StoreRefused: it comes from a later release, or holds something else.
    """
    if version > len(STEPS):
        raise StoreRefused(
            f"the database is of version {version}, this ciworker knows up to {len(STEPS)}: "
            "use the release that wrote it, or a later one"
        )
    if version == 0 and name is not None:
        raise StoreRefused(
            f"the database holds {name!r}, which no ciworker made: choose another data_dir"
        )


def migrate(connection: Connection) -> None:
    """Bring the file behind `connection` (in a transaction) to the last step.

    Raises:
        StoreRefused: the file comes from a later release, or holds something else.
    """
    done = connection.exec_driver_sql(VERSION).scalar_one()
    check_origin(done, connection.exec_driver_sql(FIRST_NAME).scalar())
    if done == len(STEPS):
        return  # without a write, for which a full disk would have no room
    for step in STEPS[done:]:
        for statement in step:
            connection.exec_driver_sql(statement)
    connection.exec_driver_sql(f"PRAGMA user_version = {len(STEPS)}")
