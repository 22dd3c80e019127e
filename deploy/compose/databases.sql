-- The databases of the deployment, made once, when PostgreSQL's volume is new.
CREATE DATABASE warehouse;
CREATE DATABASE dagster;
CREATE DATABASE mlflow;
