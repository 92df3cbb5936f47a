"""Where jobs, journals, data sets and models are recorded: tables, migrations, transactions."""
