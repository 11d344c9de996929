CREATE INDEX charges_of_account_sequence ON charges (account_key, account_sequence);
