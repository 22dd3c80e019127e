-- The databases of the deployment, created once, when PostgreSQL's volume is new.
CREATE DATABASE warehouse;
CREATE DATABASE dagster;
CREATE DATABASE mlflow;
