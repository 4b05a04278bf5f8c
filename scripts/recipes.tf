# What scripts/recipes makes: every KMS resource that needs no other service, beside a role.

terraform {
  required_providers { aws = { source = "hashicorp/aws" } }
}
provider "aws" {
  region                      = "eu-central-1"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  endpoints {
    kms = "http://127.0.0.1:@PORT@"
    iam = "http://127.0.0.1:@PORT@"
    sts = "http://127.0.0.1:@PORT@"
  }
}
data "aws_caller_identity" "me" {}
resource "aws_iam_role" "reader" {
  name = "reader"
  assume_role_policy = jsonencode({ Version = "2012-10-17", Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { AWS = data.aws_caller_identity.me.arn } }] })
}
resource "aws_kms_key" "main" {
  description             = "by terraform"
  enable_key_rotation     = true
  rotation_period_in_days = 90
  deletion_window_in_days = 7
  tags                    = { team = "storage" }
}
resource "aws_kms_key" "sign" {
  customer_master_key_spec = "ECC_NIST_P256"
  key_usage                = "SIGN_VERIFY"
  deletion_window_in_days  = 7
}
resource "aws_kms_key" "multi" {
  multi_region            = true
  deletion_window_in_days = 7
}
resource "aws_kms_alias" "main" {
  name          = "alias/terraform"
  target_key_id = aws_kms_key.main.key_id
}
resource "aws_kms_grant" "reader" {
  name              = "reader"
  key_id            = aws_kms_key.main.key_id
  grantee_principal = aws_iam_role.reader.arn
  operations        = ["Encrypt", "Decrypt", "GenerateDataKey"]
  constraints { encryption_context_equals = { Department = "Storage" } }
}
resource "aws_kms_key_policy" "sign" {
  key_id = aws_kms_key.sign.key_id
  policy = jsonencode({ Version = "2012-10-17", Statement = [{ Sid = "root", Effect = "Allow", Action = "kms:*", Resource = "*", Principal = { AWS = "arn:aws:iam::111122223333:root" } }] })
}
resource "aws_kms_external_key" "own" {
  description             = "imported"
  key_material_base64     = "Wblj06fduthWggmsT0cLVoIMOkeLbc2kVfMud77i/JY="
  deletion_window_in_days = 7
}
resource "aws_kms_ciphertext" "c" {
  key_id    = aws_kms_key.main.key_id
  plaintext = "hello"
  context   = { a = "b" }
}
data "aws_kms_public_key" "sign" { key_id = aws_kms_key.sign.arn }
data "aws_kms_alias" "app" { name = "alias/app" }
output "alias_target" { value = data.aws_kms_alias.app.target_key_id }
